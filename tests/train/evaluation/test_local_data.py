"""Local copies: the columns that the harness's own tasks read, so that prompts, choices and answers are theirs."""

import json

import pytest

pytest.importorskip("lm_eval")

from common.errors import UserError
from train.evaluation.local_data import DATA_HOME, find_local
from train.evaluation.suite import Asked, Suite
from train.evaluation.tasks import metric_problems, open_tasks

FOUR = ["one", "two", "three", "four"]
FILES = {
    "arc_challenge/test.jsonl": [
        {"question": "Why?", "choices": FOUR, "label": 2},
        {"question": "How?", "choices": [*FOUR, "five"], "label": 4},
    ],
    "openbookqa/test.jsonl": [{"question": "A stem", "choices": FOUR, "label": 1}],
    "mathqa/test.jsonl": [
        {"question": "how many ?", "choices": ["3 , 5", "rs . 19,800", "dAtA", "1 / 2", "nonE"], "label": 4}
    ],
    "hellaswag/validation.jsonl": [
        {"query": "Roof shingle removal: A man is sitting on a roof. he", "choices": FOUR, "label": 3},
        {"query": "Health: How to sleep. Rest. Do it well.", "choices": FOUR, "label": 0},
        {"query": 'Sport: 4 he runs! the man said "go" to a red fox', "choices": FOUR, "label": 0},
        {"query": "Sport: a man", "choices": FOUR, "label": 0},
    ],
    "mmlu/test.jsonl": [
        {"subject": "anatomy", "question": " Which? ", "choices": FOUR, "label": 1},
        {"subject": "astronomy", "question": "Where?", "choices": FOUR, "label": 0},
    ],
    "mmlu/dev.jsonl": [
        {"subject": "anatomy", "question": f"Shot {n}?", "choices": FOUR, "label": n % 4} for n in range(5)
    ],
    "truthfulqa/mc_task.json": [
        {"question": "Is it?", "mc1_targets": {"Yes.": 1, "No.": 0}, "mc2_targets": {"Yes.": 1, "Sure.": 1, "No.": 0}}
    ],
    "truthfulqa/TruthfulQA.csv": (
        "\ufeffType,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source\n"
        'Adversarial,Law,"What, then?",Nothing,"Nothing; It is ""so""; I have no comment.","You; \nDie ;",web\n'
    ),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    for name, content in FILES.items():
        path = home / "benchmarks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(row) + "\n" for row in content) if name.endswith("l") else json.dumps(content)
        path.write_text(content if isinstance(content, str) else lines, encoding="utf-8")
    return home


@pytest.fixture(autouse=True)
def _local(home, monkeypatch):
    monkeypatch.setenv(DATA_HOME, str(home))


def opened(name, shots=0):
    """Return a task's only leaf, and its documents."""
    (task,) = open_tasks([Asked(name, shots)])
    (leaf,) = task.leaves.values()
    return leaf, list(leaf.test_docs() if leaf.has_test_docs() else leaf.validation_docs())


def asked(name):
    leaf, documents = opened(name)
    return [(leaf.doc_to_text(d), leaf.doc_to_choice(d), leaf.doc_to_target(d)) for d in documents]


class TestPrompts:
    def test_arc(self):
        assert asked("arc_challenge") == [
            ("Question: Why?\nAnswer:", FOUR, 2),
            ("Question: How?\nAnswer:", [*FOUR, "five"], 4),
        ]

    def test_openbookqa(self):
        assert asked("openbookqa") == [("A stem", FOUR, 1)]

    def test_mathqa_in_small_letters_and_cut_where_the_harness_cuts(self):
        ((text, choices, target),) = asked("mathqa")
        assert text == "Question: how many ?\nAnswer:"
        assert choices == ["3", "rs . 19,800", "data", "1 / 2", "none"]  # the harness ends a choice at ", "
        assert target == 4

    def test_hellaswag_begins_the_unfinished_sentence_with_a_capital(self):
        assert [text for text, _, _ in asked("hellaswag")] == [
            "Roof shingle removal: A man is sitting on a roof. He",
            "Health: How to sleep. Rest. Do it well.",
            'Sport: 4 he runs! The man said "go" to a red fox',
            "Sport: A man",
        ]
        leaf, documents = opened("hellaswag")
        assert [(leaf.doc_to_choice(d), int(leaf.doc_to_target(d))) for d in documents[:2]] == [(FOUR, 3), (FOUR, 0)]

    def test_mmlu_by_subject_with_its_own_shots(self):
        leaf, documents = opened("mmlu_anatomy", 5)
        assert len(documents) == 1
        assert leaf.doc_to_text(documents[0]) == "Which?\nA. one\nB. two\nC. three\nD. four\nAnswer:"
        leaf.set_config("num_fewshot", 5)
        leaf.set_fewshot_seed(1234)
        prompt = leaf.fewshot_context(documents[0], 5)
        assert prompt.startswith("The following are multiple choice questions (with answers) about anatomy.\n\nShot 0?")
        assert [f"Shot {n}?" in prompt for n in range(5)] == [True] * 5
        assert "Answer: B\n\nShot 2?" in prompt

    def test_truthfulqa_choices(self):
        leaf, (document,) = opened("truthfulqa_mc1")
        assert leaf.doc_to_text(document).endswith("\n\nQ: Is it?\nA:")
        assert leaf.doc_to_choice(document) == ["Yes.", "No."]
        leaf, (document,) = opened("truthfulqa_mc2")
        # log-probabilities of Yes, Sure, No: 1/2, 1/4, 1/4
        found = leaf.process_results(document, [(-0.6931472, False), (-1.3862944, False), (-1.3862944, False)])
        assert found["acc"] == pytest.approx(0.75)

    def test_truthfulqa_answers(self):
        leaf, (document,) = opened("truthfulqa_gen")
        assert leaf.doc_to_text(document).endswith("\n\nQ: What, then?")
        assert document["correct_answers"] == ["Nothing.", 'It is "so".', "I have no comment."]
        assert document["incorrect_answers"] == ["You.", "Die."]
        assert document["best_answer"] == "Nothing"


class TestWhereFrom:
    def test_rows_of_the_hubs_own_form_stay_as_they_are(self, tmp_path, monkeypatch):
        own = {"question": "Q", "choices": {"text": FOUR, "label": ["1", "2", "3", "4"]}, "answerKey": "3", "id": "x"}
        (tmp_path / "arc_challenge").mkdir()
        (tmp_path / "arc_challenge" / "test.jsonl").write_text(json.dumps(own))
        monkeypatch.setenv(DATA_HOME, str(tmp_path))
        assert asked("arc_challenge") == [("Question: Q\nAnswer:", FOUR, 2)]

    def test_no_copy_none_given(self, monkeypatch, tmp_path):
        assert find_local("allenai/ai2_arc", "ARC-Easy") is None
        monkeypatch.setenv(DATA_HOME, str(tmp_path))
        assert find_local("allenai/ai2_arc", "ARC-Challenge") is None
        monkeypatch.delenv(DATA_HOME)
        assert find_local("allenai/ai2_arc", "ARC-Challenge") is None

    def test_a_folder_that_is_not_there(self, monkeypatch, tmp_path):
        monkeypatch.setenv(DATA_HOME, str(tmp_path / "nowhere"))
        with pytest.raises(UserError, match=DATA_HOME):
            find_local("allenai/ai2_arc", "ARC-Challenge")

    @pytest.mark.parametrize(
        "content", ['{"question": "Why?"}', "{", '{"question": "", "choices": ["a"], "label": 9}', ""]
    )
    def test_a_file_that_is_something_else_is_named(self, tmp_path, monkeypatch, content):
        (tmp_path / "arc_challenge").mkdir()
        (tmp_path / "arc_challenge" / "test.jsonl").write_text(content)
        monkeypatch.setenv(DATA_HOME, str(tmp_path))
        with pytest.raises(UserError, match=r"arc_challenge/test\.jsonl"):
            open_tasks([Asked("arc_challenge", 0)])


class TestRefused:
    @pytest.mark.slow  # the harness reads its 14,000 files to know that there is none of a name
    def test_everything_together_with_near_names(self):
        with pytest.raises(UserError) as error:
            open_tasks([Asked("arc_chalenge", 0), Asked("hellaswag", 3)])
        text = str(error.value)
        assert "arc_chalenge" in text
        assert "arc_challenge" in text
        assert "3 shots need its few-shot examples" in text

    def test_shots_that_the_harness_fixes(self):
        with pytest.raises(UserError, match="fixes it at 0 shots"):
            open_tasks([Asked("truthfulqa_mc1", 2)])

    def test_data_that_are_neither_here_nor_to_be_had(self, monkeypatch):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(UserError) as error:
            open_tasks([Asked("arc_easy", 0)])
        assert "allenai/ai2_arc ARC-Easy" in str(error.value)
        assert DATA_HOME in str(error.value)

    def test_what_its_checks_lack_is_said_before_anything_is_generated(self, home, monkeypatch, tmp_path):
        import nltk

        folder = home / "benchmarks" / "ifeval"
        folder.mkdir(exist_ok=True)
        row = {"key": 1, "prompt": "Say it.", "instruction_id_list": ["en:punctuation:no_comma"], "kwargs": [{}]}
        (folder / "input_data.jsonl").write_text(json.dumps(row))
        monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
        monkeypatch.setattr(nltk, "download", lambda *_: False)
        with pytest.raises(UserError, match=r"task ifeval: .*(langdetect|immutabledict|nltk.downloader punkt_tab)"):
            open_tasks([Asked("ifeval", 0)])

    def test_metrics_that_a_task_does_not_have(self):
        suite = Suite("mine", {"A": ((Asked("arc_challenge", 0), "accuracy"), (Asked("arc_challenge", 0), "acc"))})
        (problem,) = metric_problems(suite, open_tasks(suite.asked()))
        assert "'accuracy'" in problem
        assert "acc, acc_norm" in problem


def test_a_group_stands_for_its_tasks(tmp_path, home):
    group = {"group": "pair", "task": ["arc_challenge", "openbookqa"], "metadata": {"version": 1}}
    (tmp_path / "pair.yaml").write_text(json.dumps(group))
    pair, single = open_tasks([Asked("pair", 0), Asked("openbookqa", 0)], str(tmp_path))
    assert list(pair.leaves) == ["arc_challenge", "openbookqa"]
    assert (pair.is_group, single.is_group) == (True, False)
    assert (pair.file, single.file) == ("pair.json", "openbookqa.json")
    assert open_tasks([Asked("mmlu_anatomy", 5)])[0].file == "mmlu_anatomy.5-shot.json"
