"""Killed and started again: the whole trajectory and the final parameters are those of a run that was left alone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from common.errors import UserError
from tests.train.conftest import COLUMNS, write_shards
from tests.train.runs import make_model, make_trainer, parameters
from train.loop.checksums import write_checksums
from train.loop.resume import RESUME_NAME, changes, checkpoints, find_checkpoint, is_complete

ROOT = Path(__file__).resolve().parents[3]
TRAIN = Path(sys.executable).with_name("train")
RATES = ("runtime", "per_s", "mfu", "peak_memory")  # the only entries that may differ

# 12 steps in 3 epochs of 4; checkpoints at 3, 6, 9, 12.
COMMON = ["--max_steps", "12", "--save_steps", "3", "--use_cpu", "--seed", "5", "--learning_rate", "1e-3"]
SPLIT = ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "4"]
FORMS = {
    # decaying lambda, an accumulated step with its guess, evaluation after each epoch, a log line over two steps
    "go": ["--grouper", "first", "--lambda_min", "0.1", "--eval_fraction", "0.2", "--logging_steps", "2", *SPLIT],
    "sft": ["--grouper", "first", "--objective", "sft", "--per_device_train_batch_size", "8", "--logging_steps", "2"],
    "rho1": [
        "--grouper",
        "reference",
        "--objective",
        "rho1",
        "--packing",
        "true",
        "--per_device_train_batch_size",
        "2",
    ],
    # dropout, so the random states count; the evaluation draws from them too, in the step of the checkpoint
    "lora": [
        *("--grouper", "second", "--use_peft", "true", "--lora_dropout", "0.3", "--eval_fraction", "0.2"),
        *("--save_steps", "4", *SPLIT),
    ],
}
KILLS = {
    "go": [
        [{"at": "step", "step": 2}],  # before the first checkpoint
        [{"at": "step", "step": 5}],  # between two, in the second epoch, with a log line half full
        [{"at": "step", "step": 4}, {"at": "step", "step": 8}, {"at": "step", "step": 11}],  # three times
        [{"at": "weights", "step": 6}],  # while a checkpoint is written
        [{"at": "state", "step": 12}],  # the last one, in the middle of its last file
    ],
    "sft": [[{"at": "step", "step": 7}]],
    "rho1": [[{"at": "step", "step": 10}]],
    "lora": [[{"at": "step", "step": 5}], [{"at": "step", "step": 10}]],
}


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


def lines(output: Path) -> list[dict]:
    """Return the log lines without the rates."""
    entries = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in entry.items() if not any(rate in k for rate in RATES)} for entry in entries]


def weights(output: Path) -> torch.Tensor:
    (path,) = [output / name for name in ("model.safetensors", "adapter_model.safetensors") if (output / name).exists()]
    return torch.cat([tensor.flatten() for _, tensor in sorted(load_file(path).items())])


@pytest.fixture(scope="module")
def place(tmp_path_factory, tokenizer):
    place = tmp_path_factory.mktemp("resume")
    write_shards(place / "shards", tokenizer, 40, COLUMNS, seed=3)
    make_model(tokenizer).save_pretrained(place / "model")
    tokenizer.save_pretrained(place / "model")
    return place


@pytest.fixture(scope="module")
def runs(place):
    """Every form once left alone, and once for each list of kills; statuses by output directory."""
    plan = []
    for form, words in FORMS.items():
        model = ["--model", str(place / "model") if form == "lora" else "tiny"]
        words = ["run", "--shards", str(place / "shards"), *model, *COMMON, *words]
        for number, kills in enumerate([[], *KILLS[form]]):
            output = ["--output_dir", str(place / f"{form}-{number}")]
            again = ["--resume_from_checkpoint", "true"]
            for index, kill in enumerate([*kills, None]):
                log = str(place / f"{form}-{number}.log")
                plan.append({"words": [*words, *output, *(again if index else [])], "kill": kill, "log": log})
    (place / "plan.json").write_text(json.dumps(plan))
    done = subprocess.run(
        [sys.executable, "-m", "tests.train.killed", str(place / "plan.json")],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=ROOT,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    statuses = json.loads(done.stdout.splitlines()[-1])
    for planned, status in zip(plan, statuses, strict=True):
        text = Path(planned["log"]).read_text()[-2000:]
        assert status == (signal.SIGKILL if planned["kill"] else 0), (planned, text)
    return place


@pytest.mark.slow
class TestKilled:
    @pytest.mark.parametrize(("form", "number"), [(f, n + 1) for f in FORMS for n in range(len(KILLS[f]))])
    def test_trajectory_and_parameters_are_those_of_the_run_left_alone(self, form, number, runs):
        expected, found = lines(runs / f"{form}-0"), lines(runs / f"{form}-{number}")
        assert [entry["step"] for entry in found] == [entry["step"] for entry in expected]
        for entry, other in zip(found, expected, strict=True):
            assert entry == pytest.approx(other, abs=1e-6), f"step {other['step']}"
        left_alone, resumed = weights(runs / f"{form}-0"), weights(runs / f"{form}-{number}")
        torch.testing.assert_close(resumed, left_alone, atol=1e-6, rtol=0)

    def test_the_trajectory_is_whole(self, runs):
        steps = [entry["step"] for entry in lines(runs / "go-3") if "loss" in entry]
        assert steps == [2, 4, 6, 8, 10, 12]
        held_out = [entry["step"] for entry in lines(runs / "go-3") if "eval_loss" in entry]
        assert held_out == [4, 8, 12]
        weights_of = [entry["lambda"] for entry in lines(runs / "go-1") if "lambda" in entry]
        assert weights_of[0] == pytest.approx(0.9 * (1 - 0.5 / 12))  # the mean of steps 0 and 1
        assert weights_of[-1] == pytest.approx((0.9 * (1 - 10 / 12) + 0.1) / 2)

    def test_counters_are_whole(self, runs):
        files = [json.loads((runs / f"go-{number}" / "run.json").read_text()) for number in (0, 3)]
        assert files[0]["redone"] == files[1]["redone"]
        assert files[0]["steps"] == files[1]["steps"] == 12
        for file, continued in zip(files, (False, True), strict=True):
            last_part = file["final_metrics"]["train_runtime"]
            assert (file["train_runtime_s"] > last_part + 0.001) is continued
        names = ("train_loss", "num_tokens", "redone_steps", "total_flos")
        for name in names:
            assert files[1]["final_metrics"][name] == pytest.approx(files[0]["final_metrics"][name], abs=1e-6)

    def test_what_happened_is_said(self, runs):
        assert "no whole checkpoint in" in (runs / "go-1.log").read_text()
        assert f"going on from {runs / 'go-2' / 'checkpoint-3'}" in (runs / "go-2.log").read_text()
        assert f"passed over {runs / 'go-4' / 'checkpoint-6'}" in (runs / "go-4.log").read_text()
        assert f"going on from {runs / 'go-5' / 'checkpoint-9'}" in (runs / "go-5.log").read_text()

    def test_a_finished_run_continued_does_nothing_more(self, runs, capsys):
        from train.cli import main

        output = runs / "sft-0"
        before, held = weights(output), lines(output)
        words = ["run", "--shards", str(runs / "shards"), "--model", "tiny", *COMMON, *FORMS["sft"]]
        with pytest.raises(SystemExit) as stop:
            main([*words, "--output_dir", str(output), "--resume_from_checkpoint"])
        assert stop.value.code == 0
        assert torch.equal(weights(output), before)
        assert lines(output) == held


@pytest.mark.slow
def test_the_installed_command_killed_from_outside(place):
    output = place / "outside"
    words = ["run", "--shards", place / "shards", "--grouper", "first", "--output_dir", output]
    words += ["--max_steps", "60", "--save_steps", "4", "--use_cpu", "--per_device_train_batch_size", "4"]
    running = subprocess.Popen(
        [TRAIN, *map(str, words)], env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    metrics = output / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") >= 6):
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    assert not (output / "run.json").exists()
    done = subprocess.run(
        [TRAIN, *map(str, words), "--resume_from_checkpoint", "true"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert [entry["step"] for entry in lines(output) if "loss" in entry] == list(range(1, 61))


class TestCheckpoints:
    """Which checkpoint is taken, and which run may go on from it."""

    def train(self, shards, tokenizer, output, resume=None, max_steps=4, **changes):
        settings = {"save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 4, "logging_steps": 1}
        trainer = make_trainer(shards, tokenizer, output, max_steps=max_steps, **{**settings, **changes})
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    def test_the_newest_complete_one(self, shards, tokenizer, tmp_path):
        assert find_checkpoint(tmp_path) is None
        self.train(shards, tokenizer, tmp_path)
        assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-4"]
        assert find_checkpoint(tmp_path).name == "checkpoint-4"
        (tmp_path / "checkpoint-4" / "trainer_state.json").write_text('{"epoch": 1.')
        assert find_checkpoint(tmp_path).name == "checkpoint-2"
        (tmp_path / "checkpoint-2" / RESUME_NAME).unlink()
        assert find_checkpoint(tmp_path) is None

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"eta": 0.6}, "eta was 0.7, is 0.6"),
            ({"lambda_max": 0.5}, "lambda_max was 0.9, is 0.5"),
            ({"objective": "sft"}, "objective was go, is sft"),
            ({"learning_rate": 1e-2}, "learning_rate was 0.001, is 0.01"),
            ({"max_steps": 6}, "max_steps was 4, is 6"),
            ({"seed": 1}, "seed was 42, is 1"),
            ({"per_device_train_batch_size": 8}, "sequences_per_step was 4, is 8"),
        ],
    )
    def test_other_settings_are_refused_with_what_changed(self, change, words, shards, tokenizer, tmp_path):
        self.train(shards, tokenizer, tmp_path, max_steps=2)
        state = tmp_path / "checkpoint-2" / RESUME_NAME
        saved = json.loads(state.read_text())
        saved["settings"]["max_steps"] = 4
        state.write_text(json.dumps(saved))
        write_checksums(state.parent)
        with pytest.raises(UserError, match=words):
            self.train(shards, tokenizer, tmp_path, resume=True, **change)

    def test_another_split_of_the_same_step_goes_on(self, shards, tokenizer, tmp_path):
        whole = self.train(shards, tokenizer, tmp_path)
        split = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
        other = self.train(shards, tokenizer, tmp_path, resume=str(tmp_path / "checkpoint-2"), **split)
        torch.testing.assert_close(parameters(other), parameters(whole), atol=1e-5, rtol=0)

    def test_other_intervals_are_those_of_the_flags(self, shards, tokenizer, tmp_path):
        self.train(shards, tokenizer, tmp_path)
        (tmp_path / "checkpoint-4" / RESUME_NAME).unlink()
        other = self.train(shards, tokenizer, tmp_path, resume=True, save_steps=1)
        assert other.continued["step"] == 2
        assert is_complete(tmp_path / "checkpoint-3")

    def test_a_settings_file_of_another_version_is_compared_where_it_can_be(self):
        assert changes({"a": 1, "gone": 2}, {"a": 1, "new": 3}) == []
        assert changes({"a": 1}, {"a": 2}) == ["a was 1, is 2"]


class TestCommand:
    def fails(self, capsys, *words):
        from train.cli import main

        with pytest.raises(SystemExit) as stop:
            main(["run", *map(str, words)])
        assert stop.value.code == 1
        return capsys.readouterr().err

    def test_refusals(self, shards, tokenizer, tmp_path, capsys):
        from train.cli import main

        output = tmp_path / "out"
        words = ["--shards", shards, "--max_steps", 3, "--save_steps", 2, "--use_cpu"]
        with pytest.raises(SystemExit) as stop:
            main(["run", *map(str, words), "--output_dir", str(output)])
        assert stop.value.code == 0
        assert "add the --output_dir" in self.fails(capsys, *words, "--resume_from_checkpoint", "true")
        resume = ("--resume_from_checkpoint", output / "checkpoint-2")
        assert "no such directory" in self.fails(capsys, *words, "--resume_from_checkpoint", output / "checkpoint-9")
        assert "eta was 0.7, is 0.9" in self.fails(capsys, *words, *resume, "--eta", 0.9)
        other = write_shards(tmp_path / "other", tokenizer, seed=9)
        text = self.fails(capsys, *words, *resume, "--shards", other)
        assert "shards was" in text
        text = self.fails(capsys, "--shards", other, *words[2:], *resume)
        assert "shards was" in text
        (output / "run.json").unlink()
        assert "unfinished run (checkpoint-3)" in self.fails(capsys, *words, "--output_dir", output)
        (output / "checkpoint-2" / "trainer_state.json").unlink()
        assert "complete checkpoint" in self.fails(capsys, *words, *resume)

    def test_a_finished_run_without_checkpoints_is_not_trained_over(self, shards, tmp_path, capsys):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "run.json").write_text("{}")
        words = ("--shards", shards, "--use_cpu", "--output_dir", tmp_path / "out", "--resume_from_checkpoint")
        assert "without a checkpoint" in self.fails(capsys, *words)
