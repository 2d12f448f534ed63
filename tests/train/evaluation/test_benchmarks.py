"""`train evaluate` on benchmarks: against the harness's own command, killed, cached, over a sweep, and refused."""

import json
import shutil

import pytest

pytest.importorskip("lm_eval")

from common.errors import UserError
from tests.train.runs import small_model
from train.cli import main
from train.comparison.reading.benchmarks import task_measure
from train.evaluation import results
from train.evaluation.checkpoints import Checkpoint, find_checkpoints
from train.evaluation.command import run

TWO = ("--tasks", "arc_challenge", "openbookqa")
SUITE = """columns:
  ARC-C: {task: arc_challenge, shots: 0, metrics: [acc, acc_norm]}
  Open: {task: openbookqa, shots: 0, metrics: [acc_norm]}
"""
pytestmark = pytest.mark.usefixtures("data_home")


def read(path):
    return json.loads(path.read_text())


@pytest.fixture
def calls(monkeypatch):
    """Count the leaf tasks that are asked; `stop_at` interrupts the one of that number."""
    calls = {"asked": [], "stop_at": None}
    ask = results.run_leaf

    def counted(model, task, leaf, options):
        if len(calls["asked"]) == calls["stop_at"]:
            raise KeyboardInterrupt
        calls["asked"].append(leaf)
        return ask(model, task, leaf, options)

    monkeypatch.setattr(results, "run_leaf", counted)
    return calls


class TestAgainstTheHarness:
    def test_item_by_item(self, checkpoint, home, tmp_path):
        """The harness finds its own task file with its data in the hub's form, made here without `local_data`."""
        import lm_eval
        from lm_eval.tasks import TaskManager

        root = lm_eval.__path__[0]
        rows = [json.loads(line) for line in (home / "benchmarks/arc_challenge/test.jsonl").read_text().splitlines()]
        hub = [
            {
                "question": r["question"],
                "choices": {"text": r["choices"], "label": [*"1234"]},
                "answerKey": "1234"[r["label"]],
            }
            for r in rows
        ]
        (tmp_path / "arc.jsonl").write_text("".join(json.dumps(row) + "\n" for row in hub))
        own = {"include": f"{root}/tasks/arc/arc_challenge.yaml", "task": "arc_own", "dataset_path": "json"}
        own |= {"dataset_name": None, "training_split": None, "validation_split": None}
        own["dataset_kwargs"] = {"data_files": {"test": str(tmp_path / "arc.jsonl")}, "cache_dir": str(tmp_path / "c")}
        (tmp_path / "arc_own.yaml").write_text(json.dumps(own))
        expected = lm_eval.simple_evaluate(
            model="hf",
            model_args={"pretrained": str(checkpoint)},
            tasks=["arc_own"],
            limit=6,
            batch_size=8,
            device="cpu",
            task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        )
        assert run([str(checkpoint), "--tasks", "arc_challenge", "--limit", "6", "--out", str(tmp_path / "out")]) == 0
        record = read(tmp_path / "out" / "evaluation" / "arc_challenge.json")
        assert len(record["items"]) == 6
        for item, sample in zip(record["items"], expected["samples"]["arc_own"], strict=True):
            assert item["id"] == f"{sample['doc_id']}-{sample['prompt_hash'][:8]}"
            assert (item["acc"], item["acc_norm"]) == (sample["acc"], sample["acc_norm"])
        found = expected["results"]["arc_own"]
        assert record["metrics"] == {"acc": found["acc,none"], "acc_norm": found["acc_norm,none"]}
        assert record["metrics"]["acc_norm"] == sum(item["acc_norm"] for item in record["items"]) / 6
        assert (record["headline"], record["suite"], record["limit"], record["num_fewshot"]) == ("acc_norm", None, 6, 0)
        assert record["version"] == "1.0"

    def test_several_answers_of_an_item_stay_apart(self, checkpoint, tmp_path):
        """As those of IFEval's instructions, whose metric is the mean over all of them."""
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"n": n}) + "\n" for n in (1, 3)))
        (tmp_path / "many.py").write_text(
            "def answers(doc, results):\n"
            "    return {'each': [True] + [False] * (doc['n'] - 1), 'all': doc['n'] == 1}\n\n"
            "def pooled(items):\n    return sum(map(sum, items)) / sum(map(len, items))\n"
        )
        data = f"dataset_kwargs: {{data_files: {{test: {tmp_path}/rows.jsonl}}, cache_dir: {tmp_path}/c}}"
        (tmp_path / "many.yaml").write_text(
            f"task: many\ndataset_path: json\n{data}\ntest_split: test\noutput_type: loglikelihood\n"
            "doc_to_text: the\ndoc_to_target: cat\nprocess_results: !function many.answers\nmetric_list:\n"
            "  - {metric: each, aggregation: !function many.pooled, higher_is_better: true}\n"
            "  - {metric: all, aggregation: mean, higher_is_better: true}\n"
        )
        words = ["--tasks", "many", "--include_path", str(tmp_path), "--out", str(tmp_path / "out")]
        assert run([str(checkpoint), *words]) == 0
        record = read(tmp_path / "out/evaluation/many.json")
        assert record["metrics"] == {"each": 0.5, "all": 0.5}
        assert [item["each"] for item in record["items"]] == [[1.0], [1.0, 0.0, 0.0]]
        assert [item["all"] for item in record["items"]] == [1.0, 0.0]
        part = task_measure(record, "each").parts[0]
        assert list(part.contributions) == [0.25, 0.25]  # of 4 answers, not of 2 items


class TestCache:
    def test_killed_between_tasks_it_goes_on(self, checkpoint, tmp_path, calls, capsys):
        out = ("--out", str(tmp_path / "killed"))
        calls["stop_at"] = 1
        with pytest.raises(KeyboardInterrupt):
            run([str(checkpoint), *TWO, *out])
        assert sorted(path.name for path in (tmp_path / "killed/evaluation").iterdir()) == ["arc_challenge.json"]
        calls["stop_at"] = None
        assert run([str(checkpoint), *TWO, *out]) == 0
        assert calls["asked"] == ["arc_challenge", "openbookqa"]
        assert "kept from before" in capsys.readouterr().out
        assert run([str(checkpoint), *TWO, "--out", str(tmp_path / "alone")]) == 0
        for name in ("arc_challenge.json", "openbookqa.json"):
            assert read(tmp_path / "killed/evaluation" / name) == read(tmp_path / "alone/evaluation" / name)

    def test_killed_within_a_group_it_goes_on_with_the_next_subject(self, checkpoint, tmp_path, calls):
        group = {"group": "two_subjects", "task": ["mmlu_anatomy", "mmlu_astronomy"]}
        (tmp_path / "group.yaml").write_text(json.dumps(group))
        words = [str(checkpoint), "--tasks", "two_subjects", "mmlu_anatomy", "--num_fewshot", "3"]
        words += ["--include_path", str(tmp_path), "--out", str(tmp_path / "out")]
        calls["stop_at"] = 1
        with pytest.raises(KeyboardInterrupt):
            run(words)
        calls["stop_at"] = None
        assert run(words) == 0
        assert calls["asked"] == ["mmlu_anatomy", "mmlu_astronomy", "mmlu_anatomy"]
        folder = tmp_path / "out" / "evaluation"
        assert not list(folder.glob("parts/*"))
        whole, one = read(folder / "two_subjects.3-shot.json"), read(folder / "mmlu_anatomy.3-shot.json")
        assert [item["id"] for item in whole["items"][:4]] == [f"mmlu_anatomy/{item['id']}" for item in one["items"]]
        assert whole["metrics"]["acc"] == pytest.approx(sum(item["acc"] for item in whole["items"]) / 8)
        assert whole["num_fewshot"] == 3

    def test_what_decides_an_answer_is_asked_anew(self, checkpoint, tokenizer, tmp_path, calls):
        mine = tmp_path / "mine"
        shutil.copytree(checkpoint, mine)
        words = ["--tasks", "openbookqa", "--out", str(tmp_path / "out")]
        run([str(mine), *words])
        run([str(checkpoint), *words])  # another place, the same content
        assert len(calls["asked"]) == 1
        run([str(mine), *words, "--limit", "3"])
        run([str(mine), *words, "--limit", "3"])
        assert len(calls["asked"]) == 2
        small_model(tokenizer, seed=1).save_pretrained(mine)
        run([str(mine), *words, "--limit", "3"])
        assert len(calls["asked"]) == 3
        file = tmp_path / "out/evaluation/openbookqa.json"
        file.write_text(file.read_text()[:200])
        run([str(mine), *words, "--limit", "3"])
        assert len(calls["asked"]) == 4
        assert len(read(file)["items"]) == 3

    def test_other_data_are_asked_anew(self, checkpoint, home, tmp_path, calls, monkeypatch):
        words = [str(checkpoint), "--tasks", "openbookqa", "--out", str(tmp_path / "out")]
        run(words)
        shutil.copytree(home, tmp_path / "home")
        file = tmp_path / "home/benchmarks/openbookqa/test.jsonl"
        file.write_text(file.read_text().replace("?", "!"))
        monkeypatch.setenv("SFT_GO_DATA_HOME", str(tmp_path / "home"))
        run(words)
        assert len(calls["asked"]) == 2


class TestSuite:
    def test_columns_are_filled_and_the_average_waits_for_the_last(self, checkpoint, tmp_path, calls, capsys):
        (tmp_path / "mine.yaml").write_text(SUITE)
        words = [str(checkpoint), "--suite", str(tmp_path / "mine.yaml"), "--out", str(tmp_path / "out")]
        assert run([*words, "--columns", "Open"]) == 0
        made = read(tmp_path / "out/evaluation/suite-mine.json")
        assert (list(made["columns"]), made["average"]) == (["Open"], None)
        assert run([*words, "--columns", "ARC-C"]) == 0
        assert len(calls["asked"]) == 2
        made = read(tmp_path / "out/evaluation/suite-mine.json")
        arc, openbook = (read(tmp_path / f"out/evaluation/{name}.json") for name in ("arc_challenge", "openbookqa"))
        columns = {
            "ARC-C": (arc["metrics"]["acc"] + arc["metrics"]["acc_norm"]) / 2,
            "Open": openbook["metrics"]["acc_norm"],
        }
        assert made["columns"] == pytest.approx(columns)
        assert made["average"] == pytest.approx(sum(columns.values()) / 2)
        assert made["made_of"]["Open"] == [
            {"file": "openbookqa.json", "metric": "acc_norm", "task": "openbookqa", "shots": 0}
        ]
        assert (arc["suite"], arc["headline"]) == ("mine", "acc")
        assert "average" in capsys.readouterr().out

    def test_the_papers_suite_says_what_it_lacks_before_anything_is_asked(self, checkpoint, tmp_path, calls):
        with pytest.raises(UserError) as error:
            run(
                [
                    str(checkpoint),
                    "--suite",
                    "paper",
                    "--columns",
                    "ARC-C",
                    "MathQA",
                    "HellaSwag",
                    "--out",
                    str(tmp_path),
                ]
            )
        for name in ("regisss/math_qa", "Rowan/hellaswag"):
            assert name in str(error.value)
        assert calls["asked"] == []


class TestSweep:
    def test_every_finished_run_and_a_line_for_the_others(self, checkpoint, tmp_path, capsys):
        sweep = tmp_path / "sweep"
        for name in ("a/1", "a/2", "b/1", "c/1"):
            (sweep / "runs" / name).mkdir(parents=True)
        (sweep / "sweep.json").write_text("{}")
        for name in ("a/1", "a/2"):
            shutil.copytree(checkpoint, sweep / "runs" / name, dirs_exist_ok=True)
        for name in ("a/1", "a/2", "b/1"):
            (sweep / "runs" / name / "run.json").write_text("{}")
        assert run([str(sweep), "--tasks", "openbookqa", "--limit", "2"]) == 0
        out = capsys.readouterr().out
        assert "b/1: its weights are gone" in out
        assert "c/1: not finished" in out
        assert read(sweep / "runs/a/1/evaluation/openbookqa.json") == read(
            sweep / "runs/a/2/evaluation/openbookqa.json"
        )
        with pytest.raises(UserError, match="--out"):
            run([str(sweep), "--tasks", "openbookqa", "--out", str(tmp_path)])

    def test_a_directory_of_runs_such_as_one_point(self, checkpoint, tmp_path, capsys):
        for name in ("1", "2"):
            shutil.copytree(checkpoint, tmp_path / "sweep" / "runs" / "a" / name)
        (tmp_path / "sweep" / "runs" / "a" / "2" / "run.json").write_text("{}")
        assert run([str(tmp_path / "sweep" / "runs" / "a"), "--tasks", "openbookqa", "--limit", "2"]) == 0
        assert "1: not finished" in capsys.readouterr().out
        assert (tmp_path / "sweep/runs/a/2/evaluation/openbookqa.json").exists()
        assert not (tmp_path / "sweep/runs/a/1/evaluation").exists()

    def test_a_run_that_cannot_be_loaded_does_not_hold_up_the_others(self, checkpoint, tmp_path, capsys):
        sweep = tmp_path / "sweep"
        for name in ("a/1", "b/1"):
            shutil.copytree(checkpoint, sweep / "runs" / name)
            (sweep / "runs" / name / "run.json").write_text("{}")
        (sweep / "sweep.json").write_text("{}")
        (sweep / "runs/a/1/config.json").write_text("{}")
        assert run([str(sweep), "--tasks", "openbookqa", "--limit", "2"]) == 1
        assert "a/1: could not be loaded" in capsys.readouterr().out.replace("\n", " ")
        assert (sweep / "runs/b/1/evaluation/openbookqa.json").exists()


class TestAdapter:
    def test_is_its_base_with_the_adapter(self, checkpoint, tokenizer, tmp_path):
        peft = pytest.importorskip("peft")
        import torch
        from transformers import AutoModelForCausalLM

        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_pretrained(checkpoint)
        model = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
        model.save_pretrained(tmp_path / "adapter")
        tokenizer.save_pretrained(tmp_path / "adapter")
        model.merge_and_unload().save_pretrained(tmp_path / "merged")
        tokenizer.save_pretrained(tmp_path / "merged")
        for name in ("adapter", "merged"):
            run([str(tmp_path / name), *TWO, "--out", str(tmp_path / "out" / name)])
        for task in ("arc_challenge.json", "openbookqa.json"):
            adapter, merged = (read(tmp_path / "out" / name / "evaluation" / task) for name in ("adapter", "merged"))
            assert adapter["items"] == merged["items"]
            assert adapter["checkpoint_hash"] != merged["checkpoint_hash"]

    def test_its_base_is_part_of_its_hash_and_must_be_there(self, tmp_path):
        adapter, base = tmp_path / "adapter", tmp_path / "base"
        for path in (adapter, base):
            path.mkdir()
        (adapter / "adapter_model.safetensors").write_bytes(b"x")
        (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
        (base / "model.safetensors").write_bytes(b"y")
        (found,), _ = find_checkpoints(str(adapter), "out")
        before = found.content_hash()
        (base / "model.safetensors").write_bytes(b"z")
        assert found.content_hash() != before
        shutil.rmtree(base)
        with pytest.raises(UserError, match="base model back"):
            find_checkpoints(str(adapter), "out")


class TestRefused:
    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            ((), "nothing is asked"),
            (("--suite", "paper", "--tasks", "x"), "give one of them"),
            (("--columns", "ARC-C", "--tasks", "x"), "--columns: of which suite"),
            (("--suite", "paper", "--num_fewshot", "5"), "--num_fewshot"),
            (("--limit", "5", "--shards", "s", "--eval_fraction", "0.5"), "--limit: only for benchmarks"),
            (("--tasks", "x", "--eval_seed", "1"), "--eval_seed: only for held-out documents"),
            (("--tasks", "x", "--limit", "0"), "--limit"),
            (("--tasks", "x", "--batch_size", "many"), "--batch_size"),
            (("--shards", "s"), "--eval_fraction"),
            (("--shards", "s", "--eval_fraction", "0.5"), "--out"),
            (("--tasks", "x", "--limti", "5"), "Did you mean --limit"),
            (("--tasks", "x", "--batch-size", "0"), "--batch_size"),
            (("--suite", "nowhere.yaml"), "nowhere.yaml"),
        ],
    )
    def test_words(self, checkpoint, words, expected):
        with pytest.raises(UserError) as error:
            run([str(checkpoint), *words])
        assert expected in str(error.value)

    def test_all_of_them_together(self):
        with pytest.raises(UserError) as error:
            run(["tiny", "--suite", "x", "--tasks", "y", "--limit", "-1", "--eta", "2"])
        for part in ("give one of them", "--limit", "--eta", "tiny"):
            assert part in str(error.value)

    def test_a_checkpoint_that_is_gone(self, tmp_path):
        words = ["--tasks", "openbookqa"]
        with pytest.raises(UserError, match="no such directory"):
            run([str(tmp_path / "gone"), *words])
        (tmp_path / "run.json").write_text("{}")
        with pytest.raises(UserError, match="no weights"):
            run([str(tmp_path), *words])
        (tmp_path / "folder").mkdir()
        with pytest.raises(UserError, match="not a run's directory"):
            run([str(tmp_path / "folder"), *words])
        with pytest.raises(UserError, match="not to be had from the hub"):
            Checkpoint("a/b", "no-such/checkpoint", tmp_path).content_hash()

    def test_through_the_command(self, capsys):
        with pytest.raises(SystemExit) as stop:
            main(["evaluate", "nowhere/at/all", "--suite", "paper"])
        assert stop.value.code == 1
        assert "nowhere/at/all" in capsys.readouterr().err
        with pytest.raises(SystemExit) as stop:
            main(["evaluate", "--help"])
        assert stop.value.code == 0
        assert "--suite" in capsys.readouterr().out
