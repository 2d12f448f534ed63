"""`train sweep` itself: what it says before anything starts, and, slowly, whole sweeps that are killed or fail."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.train.conftest import write_shards
from tests.train.runs import make_model
from train.cli import main
from train.sweeps.progress import running_progress

FEW = {"model": "tiny", "max_steps": 6, "save_steps": 2, "per_device_train_batch_size": 4}


def write_sweep(place: Path, shards: Path | str, base: dict | None = None, **sections) -> Path:
    path = place / "sweep.yaml"
    content = {"base": {"shards": str(shards), **FEW, **(base or {})}, "seeds": [1, 2], **sections}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def status(*arguments) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["sweep", *map(str, arguments)])
    return stop.value.code


class TestBeforeAnythingStarts:
    def test_dry_run(self, shards, tmp_path, capsys):
        points = [{"objective": "sft"}, {"objective": "go"}]
        path = write_sweep(tmp_path, shards, points=points, grid={"eta": [0.5, 0.9]})
        assert status(path, "--out", tmp_path / "out", "--dry-run", "--set", "seeds=[4]", "--set", "max_steps=7") == 0
        printed = capsys.readouterr().out
        rows = [line.split() for line in printed.splitlines()[2:7]]
        names = ["sft/4", "go-eta0.5/4", "go-eta0.5.permuted/4", "go-eta0.9/4", "go-eta0.9.permuted/4"]
        assert [row[:5] for row in rows] == [[name, "waiting", "7", "7", "28"] for name in names]
        assert "5 runs: 5 waiting; 35 steps left: no step has been measured here yet" in printed
        assert "sft: does not read eta, so 2 points of the file are one." in printed
        assert "disk: " in printed
        assert not (tmp_path / "out").exists()

    def test_steps_follow_from_documents_and_epochs(self, shards, tmp_path, capsys):
        base = {"max_steps": -1, "num_train_epochs": 3, "eval_fraction": 0.25, "gradient_accumulation_steps": 2}
        path = write_sweep(tmp_path, shards, base, points=[{"objective": "sft"}])
        assert status(path, "--out", tmp_path / "out", "--dry-run") == 0
        # 24 documents, 6 held out: 18 in batches of 4 are 5, accumulated by 2 are 3 steps an epoch.
        assert capsys.readouterr().out.splitlines()[1].split()[:4] == ["sft/1", "waiting", "9", "9"]

    def test_everything_that_is_wrong_comes_together(self, shards, tmp_path, capsys):
        points = [{"name": "a", "objective": "sft"}, {"name": "a", "objective": "go", "lamda_max": 0.5}]
        path = write_sweep(tmp_path, shards, {"learning_rat": 1}, points=points, seeds=[1, 1])
        assert status(path, "--out", tmp_path / "out") == 1
        printed = capsys.readouterr().err
        for expected in (
            "error: 4 problems:",
            "seeds: 1 is there twice",
            "2 points have one name, a",
            "base: `train run` has no flag 'learning_rat'. Did you mean learning_rate?",
            "points[1]: `train run` has no flag 'lamda_max'. Did you mean lambda_max?",
        ):
            assert expected in printed
        assert not (tmp_path / "out").exists()

    def test_what_train_run_would_refuse_is_refused_once_with_its_points(self, shards, tmp_path, capsys):
        points = [{"objective": "sft"}, {"objective": "go"}, {"name": "x", "worst_over": "sample"}]
        for grid, expected in (
            ({"label_smoothing_factor": [0.1]}, ["every point: --label_names", "go, x: --label_smoothing_factor"]),
            ({"eta": [1.5]}, ["go, x: --eta: "]),  # told before the others, since it needs no torch
        ):
            path = write_sweep(tmp_path, shards, {"label_names": ["x"]}, points=points, control=False, grid=grid)
            assert status(path, "--out", tmp_path / "out") == 1
            printed = capsys.readouterr().err
            assert all(text in printed for text in expected)

    def test_a_column_that_the_shards_lack(self, shards, tmp_path, capsys):
        points = [{"objective": "go", "grouper": "none"}]
        assert status(write_sweep(tmp_path, shards, points=points), "--out", tmp_path / "out") == 1
        assert "none" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            ([], "required: SWEEP.yaml, --out"),
            (["x.yaml", "--out", "o", "--runs-at-once", "0"], "expected a whole number of at least 1, found '0'"),
            (["x.yaml", "--out", "o", "--gpus-per-run", "1.5"], "expected a share of a GPU such as 0.5"),
            (["x.yaml", "--out", "o", "--keep", "nothing"], "invalid choice: 'nothing'"),
            (["x.yaml", "--out", "o", "--max_steps", "3"], "no such flag: --max_steps. A setting of the runs is given"),
            (["x.yaml", "--out", "o", "--run-at-once=3"], "no such flag: --run_at_once. Did you mean --runs_at_once?"),
            (["x.yaml", "--out", "o", "--runs_at_once", "0"], "expected a whole number of at least 1, found '0'"),
            (["x.yaml", "y.yaml", "--out", "o"], "train sweep: too much: y.yaml. `train sweep --help`"),
            (["x.yaml", "--out", "o"], "x.yaml: no such file"),
        ],
    )
    def test_flags(self, words, expected, capsys):
        assert status(*words) == 1
        assert expected in capsys.readouterr().err

    def test_gpus_and_workers_go_together(self, shards, tmp_path, capsys):
        path = write_sweep(tmp_path, shards, points=[{"objective": "sft"}])
        assert status(path, "--out", tmp_path / "out", "--gpus-per-run", "8") == 1
        assert "sft trains in 1 process(es), and each takes one GPU; give `workers: 8`" in capsys.readouterr().err
        assert status(path, "--out", tmp_path / "out", "--set", "workers=8") == 1
        assert "sft: has 8 workers; say --gpus-per-run 8" in capsys.readouterr().err

    def test_help_teaches_with_an_example_that_is_one(self, tmp_path, capsys):
        assert status("--help") == 0
        printed = capsys.readouterr().out
        example = printed.partition("sweep.yaml:\n")[2].partition("    train sweep")[0]
        path = tmp_path / "sweep.yaml"
        path.write_text(example)
        from train.sweeps.file import read_sweep_file
        from train.sweeps.points import make_points

        sweep, problems = read_sweep_file(str(path))
        assert problems == []
        assert len(make_points(sweep)[0]) == 7

    def test_help_needs_no_torch(self):
        code = (
            "import sys, train.cli\ntry:\n    train.cli.dispatch(['sweep', '--help'])\n"
            "except SystemExit as stop:\n    print(stop.code, {'torch', 'ray'} & set(sys.modules))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.endswith("0 set()\n")


def start(*arguments, cwd) -> subprocess.Popen:
    """Start the command in a process group of its own, as a shell does."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [sys.executable, "-m", "train.cli", "sweep", *map(str, arguments)],
        cwd=cwd,
        env={**environment, "PYTHONPATH": str(Path(__file__).parents[3])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(*arguments, cwd) -> tuple[int, str]:
    process = start(*arguments, cwd=cwd)
    try:
        printed, _ = process.communicate(timeout=280)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, printed


def parameters(out: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {str(path.parent.relative_to(out)): load_file(path) for path in out.glob("runs/*/*/model.safetensors")}


@pytest.mark.slow
@pytest.mark.timeout(600)
class TestWholeSweeps:
    def test_killed_twice_and_started_again_it_ends_as_if_left_alone(self, shards, tmp_path):
        path = write_sweep(tmp_path, shards, points=[{"objective": "go"}])
        alone, killed = tmp_path / "alone", tmp_path / "killed"
        # One at once: a second place has imports of its own to pay for, and a run does not depend on its company.
        code, printed = finish(path, "--out", alone, "--runs-at-once", 1, cwd=tmp_path)
        assert code == 0, printed
        assert "4 of 4 runs are finished" in printed
        assert f"next: `train compare {alone}`" in printed

        chance = random.Random(time.time_ns())
        for needed in (0, 1):  # runs that have finished when the kill comes
            process = start(path, "--out", killed, "--runs-at-once", 2, cwd=tmp_path)
            while True:
                assert process.poll() is None, process.stdout.read()
                directories = [d for d in killed.glob("runs/*/*") if not (d / "run.json").is_file()]
                done = len(list(killed.glob("runs/*/*/run.json")))
                if done >= needed and any((running_progress(d).step or 0) >= 1 for d in directories):
                    break
                time.sleep(0.02)
            time.sleep(chance.random())
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        finished = {file: file.stat().st_mtime_ns for file in killed.glob("runs/*/*/run.json")}
        code, printed = finish(path, "--out", killed, "--runs-at-once", 2, cwd=tmp_path)
        assert code == 0, printed
        assert all(file.stat().st_mtime_ns == time_ns for file, time_ns in finished.items())  # not done twice
        expected, found = parameters(alone), parameters(killed)
        assert set(found) == set(expected) == {f"runs/go{c}/{s}" for c in ("", ".permuted") for s in (1, 2)}
        for run in expected:
            assert all(torch.equal(expected[run][name], found[run][name]) for name in expected[run]), run
            steps = [json.loads(line).get("step") for line in (killed / run / "metrics.jsonl").read_text().splitlines()]
            assert [step for step in steps if step][:6] == [1, 2, 3, 4, 5, 6]
            assert not list((killed / run).glob("checkpoint-*"))
        assert any(
            not torch.equal(found["runs/go/1"][name], found["runs/go.permuted/1"][name]) for name in found["runs/go/1"]
        )
        # A finished one does nothing, whatever is asked of Ray, and needs no second.
        started = time.perf_counter()
        code, printed = finish(path, "--out", killed, "--address", "nowhere:1", cwd=tmp_path)
        assert (code, "all 4 runs are finished, nothing is left to do" in printed) == (0, True), printed
        assert time.perf_counter() - started < 10
        assert f"next: `train compare {killed}`" in printed
        code, printed = finish(path, "--out", killed, "--set", "max_steps=7", cwd=tmp_path)
        assert code == 1
        assert "every point: max_steps was 6, is 7" in printed

    def test_one_that_fails_leaves_the_others_and_is_tried_again(self, tmp_path, tokenizer):
        shards = write_shards(tmp_path / "shards", tokenizer)
        model = tmp_path / "model"
        model.mkdir()
        points = [{"name": "missing", "model": str(model)}, {"name": "whole"}]
        base = {"objective": "sft", "save_strategy": "no", "use_cpu": True}
        path = write_sweep(tmp_path, shards, base, points=points, seeds=[1])
        out = tmp_path / "out"
        code, printed = finish(path, "--out", out, "--keep", "metrics", cwd=tmp_path)
        assert code == 1
        assert "missing/1: FAILED with status 1: " in printed
        assert "1 of 2 runs are finished" in printed
        failed = json.loads((out / "runs/missing/1/failed.json").read_text())
        assert failed["status"] == 1
        assert "could not load the" in failed["tail"][-1]
        whole = out / "runs/whole/1/run.json"
        assert not list(out.glob("runs/*/*/*.safetensors"))
        made = whole.stat().st_mtime_ns

        make_model(tokenizer).save_pretrained(model)
        tokenizer.save_pretrained(model)
        code, printed = finish(path, "--out", out, "--keep", "metrics", cwd=tmp_path)
        assert code == 0, printed
        assert "missing/1: started again" in printed
        assert whole.stat().st_mtime_ns == made
        assert not (out / "runs/missing/1/failed.json").exists()
        content = json.loads((out / "runs/missing/1/run.json").read_text())
        assert (content["point"], content["seed"], content["command"][:2]) == ("missing", 1, ["train", "run"])
