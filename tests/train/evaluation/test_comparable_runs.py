"""Runs that can be compared: the same held-out documents whatever the seed, and resumes that keep to them."""

import json

import pytest

from tests.train.conftest import COLUMNS, write_shards
from tests.train.runs import plan_for
from train.cli import main
from train.data.loading import load_data, open_shards

WORDS = ("--use_cpu", "--grouper", "first", "--eval_fraction", "0.25", "--per_device_train_batch_size", "4")


@pytest.fixture(scope="module")
def place(tmp_path_factory, tokenizer):
    place = tmp_path_factory.mktemp("comparable")
    write_shards(place / "shards", tokenizer, 24, COLUMNS)
    return place


def train(place, output, *words):
    """Run `train run` in this process and return its exit status and output directory."""
    command = ["run", "--shards", str(place / "shards"), *WORDS, "--output_dir", str(place / output), *words]
    with pytest.raises(SystemExit) as stop:
        main(command)
    return stop.value.code


@pytest.fixture(scope="module")
def control(place):
    words = ("--permute_groups", "--max_steps", "4", "--save_steps", "2", "--seed", "3", "--point", "go-first")
    assert train(place, "control", *words) == 0
    (place / "control" / "run.json").rename(place / "control" / "first.json")
    return place / "control"


class TestResume:
    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            ((), "permute_groups was True, is False"),
            (("--permute_groups", "--eval_seed", "3"), "eval_seed was 0, is 3"),
            (("--permute_groups", "--seed", "4"), "seed was 3, is 4"),
        ],
    )
    def test_with_other_data_is_refused(self, place, control, capsys, words, expected):
        words = ("--max_steps", "4", "--seed", "3", *words, "--resume_from_checkpoint")
        assert train(place, "control", *words) == 1
        assert expected in capsys.readouterr().err

    def test_with_other_yardsticks_goes_on(self, place, control):
        words = (
            "--permute_groups",
            "--max_steps",
            "4",
            "--seed",
            "3",
            "--eval_groupers",
            "second",
            "--eval_eta",
            "0.5",
        )
        assert train(place, "control", *words, "--resume_from_checkpoint") == 0
        run = json.loads((control / "run.json").read_text())
        assert run["yardsticks"] == {"columns": ["second"], "eta": 0.5, "ties": "threshold"}
        assert (run["seed"], run["point"]) == (3, None)
        first = json.loads((control / "first.json").read_text())
        assert (first["point"], first["yardsticks"]["columns"]) == ("go-first", ["first", "second"])
        assert first["run"]["permute_groups"] is True
        (control / "run.json").unlink()

    def test_a_checkpoint_of_when_the_seed_chose_held_out_documents(self, place, control, capsys):
        for checkpoint in control.glob("checkpoint-*"):
            content = json.loads((checkpoint / "resume.json").read_text())
            del content["origin"]["eval_seed"]
            (checkpoint / "resume.json").write_text(json.dumps(content))
            (checkpoint / "checksums.json").unlink()
        words = ("--permute_groups", "--max_steps", "4", "--seed", "3", "--resume_from_checkpoint")
        assert train(place, "control", *words) == 1
        assert "eval_seed was 3, is 0" in capsys.readouterr().err
        assert train(place, "control", *words, "--eval_seed", "3") == 0


def test_tokens_and_switches_of_a_continued_run_are_those_of_one_left_alone(place):
    names = ("tokens_seen", "supervised_tokens_seen", "worst_group_switches", "seed", "eval_hash")
    words = ("--max_steps", "6", "--save_steps", "2", "--packing", "true", "--logging_steps", "4")
    assert train(place, "counted", *words) == 0
    alone = json.loads((place / "counted" / "run.json").read_text())
    lines = (place / "counted" / "metrics.jsonl").read_text().splitlines()
    assert train(place, "counted", *words, "--resume_from_checkpoint", str(place / "counted" / "checkpoint-2")) == 0
    continued = json.loads((place / "counted" / "run.json").read_text())
    assert {name: continued[name] for name in names} == {name: alone[name] for name in names}
    assert 0 < alone["supervised_tokens_seen"] < alone["tokens_seen"]
    again = (place / "counted" / "metrics.jsonl").read_text().splitlines()
    switches = [[json.loads(line).get("worst_group_switches") for line in part] for part in (lines, again)]
    assert switches[0] == switches[1]
    assert alone["worst_group_switches"]["count"] == [count for count in switches[0] if count is not None][-1]


def test_what_seed_chose_eval_seed_chooses(place, tmp_path):
    opened = open_shards([str(place / "shards")])
    plan = plan_for(opened, "first")
    sets = [
        [tuple(row["input_ids"].tolist()) for row in load_data(opened, plan, 64, 0.25, seed, tmp_path / str(seed)).eval]
        for seed in (0, 1)
    ]
    assert len(sets[0]) == len(sets[1]) == 6
    assert sets[0] != sets[1]
