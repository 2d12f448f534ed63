"""What is seen of a sweep: a live table on a terminal, plain lines elsewhere; and what it will take."""

import io
import json

import pytest
from rich.console import Console

from tests.train.runs import make_model
from train.sweeps import table as tables
from train.sweeps.estimates import count_parameters, disk_line, dry_run_lines, duration, size_text
from train.sweeps.points import Point
from train.sweeps.process import Outcome
from train.sweeps.state import list_runs
from train.sweeps.table import SweepTable
from train.sweeps.validation import Size

POINTS = [Point("sft", {"objective": "sft"}), Point("go", {"objective": "go"})]


@pytest.fixture
def runs(tmp_path):
    """Four runs: one finished, one under way, one failed, one waiting."""
    runs = list_runs(tmp_path, POINTS, [1, 2])
    for run in runs[:3]:
        run.directory.mkdir(parents=True)
    finished = {"steps": 20, "train_runtime_s": 10.0, "final_metrics": {"loss_all": 8.25}}
    (runs[0].directory / "run.json").write_text(json.dumps(finished))
    (runs[0].directory / "log.txt").write_text("--- then on here: train run\n")
    log = "--- then on here: train run\nstep     5/20  loss 8.5000  all 8.5  0.80 s/step, 0:12 left\n"
    (runs[1].directory / "log.txt").write_text(log)
    (runs[1].directory / "checkpoint-4").mkdir()
    (runs[2].directory / "failed.json").write_text("{}")
    return runs


class TestTable:
    def test_on_a_terminal_every_run_has_its_row(self, runs):
        out = io.StringIO()
        with SweepTable(Console(file=out, force_terminal=True, width=120, height=40), runs) as table:
            table.started(runs[1])
            table.update()
        shown = out.getvalue()
        for expected in ("sft/1", "20/20", "8.2500", "go/1", "running", "5/20", "8.5000", "0:12", "sft/2", "failed"):
            assert expected in shown
        assert "1 of 4 finished, 1 running, 1 failed" in shown

    def test_more_runs_than_lines(self, runs):
        out = io.StringIO()
        with SweepTable(Console(file=out, force_terminal=True, width=120, height=7), runs) as table:
            table.update()
        assert "… and 1 more" in out.getvalue()

    def test_elsewhere_lines(self, runs, monkeypatch):
        out = io.StringIO()
        monkeypatch.setattr(tables, "SECONDS_BETWEEN_LINES", 0.0)
        with SweepTable(Console(file=out, width=40), runs) as table:
            table.started(runs[1])
            table.started(runs[3])
            table.ended(runs[1], Outcome(3, ["what went wrong [bold]"], 1.0, "failed.json: not written"))
            table.ended(runs[0], Outcome(0, [], 75.0))
            table.update()
        lines = out.getvalue().splitlines()  # none is broken, however narrow the terminal
        assert lines[:2] == ["go/1: started again", "go/2: started"]
        assert lines[2].startswith("go/1: FAILED with status 3: what went wrong [bold]  (see ")
        assert lines[3:5] == [
            "failed.json: not written",
            "sft/1: finished in 1 min 15 s, last loss 8.2500  (1 of 4 finished)",
        ]
        assert lines[5] == "1 of 4 finished, 1 running, 2 failed, about 1 min 15 s left"
        assert "\x1b" not in out.getvalue()

    def test_the_held_out_loss_is_what_a_finished_run_is_known_by(self, runs):
        path = runs[0].directory / "run.json"
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | {"final_metrics": {"loss_all": 8.25, "eval_loss_all": 7.5}}))
        lines, terminal = io.StringIO(), io.StringIO()
        with SweepTable(Console(file=lines), runs) as table:
            table.ended(runs[0], Outcome(0, [], 75.0))
        assert lines.getvalue() == "sft/1: finished in 1 min 15 s, held-out loss 7.5000  (1 of 4 finished)\n"
        with SweepTable(Console(file=terminal, force_terminal=True, width=120, height=40), runs) as table:
            table.update()
        assert all(expected in terminal.getvalue() for expected in ("held out", "8.2500", "7.5000"))


class TestEstimates:
    def test_what_is_left_by_what_was_measured(self, runs):
        lines = dry_run_lines(runs, {"sft": Size(20, 100, 8), "go": Size(20, 100, 8)}, 2)
        rows = [line.split() for line in lines[1:5]]
        assert rows[0] == ["sft/1", "finished", "20", "0", "160", "0.50", "–"]  # 10 s over 20 steps
        assert rows[1] == ["go/1", "unfinished", "20", "16", "160", "0.80", "13", "s"]  # checkpoint 4; as its log says
        assert rows[2] == ["sft/2", "failed", "20", "20", "160", "0.50", "10", "s"]
        # 16 × 0.8 + 20 × 0.5 + 20 × 0.8 = 38.8 s, two at a time
        assert lines[-1].startswith("4 runs: 1 failed, 1 finished, 1 unfinished, 1 waiting; 56 steps left: about 19 s")

    def test_parameters_are_those_of_the_model(self, tokenizer, tmp_path):
        model = make_model(tokenizer)
        expected = model.num_parameters()
        model.save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "shards" / "tokenizer")
        assert count_parameters({"model": str(tmp_path / "model")}) == expected
        assert count_parameters({"model": "tiny", "shards": [str(tmp_path / "shards")]}) == expected
        assert count_parameters({"model": "nobody/nothing"}) is None

    def test_disk(self, tokenizer, tmp_path):
        tokenizer.save_pretrained(tmp_path / "shards" / "tokenizer")
        settings = {"model": "tiny", "shards": str(tmp_path / "shards")}
        n = count_parameters(settings)
        runs = list_runs(tmp_path / "out", POINTS, [1, 2])
        line = disk_line(tmp_path / "out", runs, settings, "model", 2)
        # kept: 4 bytes a parameter; under way: the model, and two checkpoints of weights and two moments
        assert size_text(4 * n) + " stay of each run" in line
        assert size_text(4 * (4 * n) + 2 * (28 * n)) + " for the 4 left" in line
        assert "0 B stay" in disk_line(tmp_path / "out", runs, settings, "metrics", 2)
        assert "unknown until a run has finished" in disk_line(tmp_path, runs, {"use_peft": True}, "model", 2)

    def test_units(self):
        assert [duration(s) for s in (3, 75, 7384)] == ["3 s", "1 min 15 s", "2 h 03 min"]
        assert [size_text(s) for s in (7, 1500, 2.5e9, 3e12)] == ["7 B", "1.5 kB", "2.5 GB", "3.0 TB"]
