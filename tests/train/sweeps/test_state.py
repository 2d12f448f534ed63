"""The directory is the state: what is refused, who holds it, what stays of a run."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from common.errors import UserError
from train.sweeps import state
from train.sweeps.points import Point

POINTS = [Point("sft", {"shards": "s", "objective": "sft"}), Point("go", {"shards": "s", "eta": 0.5})]


def describe(points=POINTS, seeds=(1, 2), hashes=None):
    return state.describe({"shards": "s"}, list(seeds), list(points), "model", hashes or {"s": "a" * 64})


def check(out, before, asked, extend=False):
    state.check_directory(out, before, asked, extend)


def refused(out, before, asked, extend=False):
    with pytest.raises(UserError) as caught:
        check(out, before, asked, extend)
    return str(caught.value)


class TestChanges:
    def test_the_same_sweep_goes_on(self, tmp_path):
        check(tmp_path, describe(), describe())
        check(tmp_path, describe(seeds=[1, 2]), describe(seeds=[2, 1]))

    def test_a_setting(self, tmp_path):
        changed = [Point(p.name, {**p.settings, "max_steps": 3, "shards": "t"}) for p in POINTS]
        said = refused(tmp_path, describe(), describe(changed))
        assert "every point: max_steps was not given, is 3" in said
        assert "every point: shards was s, is t" in said
        assert "--extend" not in said

    def test_a_setting_of_one_point(self, tmp_path):
        changed = [POINTS[0], Point("go", {"shards": "s", "eta": 0.9})]
        assert "go: eta was 0.5, is 0.9" in refused(tmp_path, describe(), describe(changed))

    def test_shards_that_were_changed(self, tmp_path):
        said = refused(tmp_path, describe(), describe(hashes={"s": "b" * 64}))
        assert "shards: manifest of s was aaaaaaaaaaaa…, is bbbbbbbbbbbb…" in said

    def test_additions_are_refused_and_extend_adds_them(self, tmp_path):
        asked = describe([*POINTS, Point("new", {"eta": 0.7})], seeds=[1, 2, 3])
        said = refused(tmp_path, describe(), asked)
        assert "seeds were [1, 2], are [1, 2, 3]" in said
        assert "point new is new" in said
        assert "--extend adds" in said
        check(tmp_path, describe(), asked, extend=True)

    def test_extend_takes_nothing_away(self, tmp_path):
        assert "point go is no longer there" in refused(tmp_path, describe(), describe(POINTS[:1]), extend=True)
        assert "--extend only adds" in refused(tmp_path, describe(), describe(seeds=[1, 3]), extend=True)

    def test_when_it_was_started_stays(self, tmp_path):
        before = {**describe(), "started": "then"}
        state.save_sweep(tmp_path, before, describe(seeds=[1, 2, 3]))
        content = state.read_sweep(tmp_path)
        assert (content["started"], content["seeds"], content["sweep_version"]) == ("then", [1, 2, 3], 1)


class TestForeignDirectories:
    def test_other_files(self, tmp_path):
        (tmp_path / "thesis.tex").touch()
        assert "found 'thesis.tex' and no sweep.json" in refused(tmp_path, None, describe())

    def test_inside_of_another_sweep(self, tmp_path):
        state.save_sweep(tmp_path, None, describe())
        inside = tmp_path / "runs" / "sft"
        assert "lies in another sweep's directory" in refused(inside, None, describe())

    def test_another_version(self, tmp_path):
        (tmp_path / "sweep.json").write_text('{"sweep_version": 2}')
        with pytest.raises(UserError, match="expected sweep_version 1, found 2"):
            state.read_sweep(tmp_path)
        (tmp_path / "sweep.json").write_text("[")
        with pytest.raises(UserError, match="expected JSON"):
            state.read_sweep(tmp_path)


class TestHeld:
    def test_a_second_is_told_who_holds_it_and_a_kill_frees_it(self, tmp_path):
        code = (
            "import sys, time\nfrom pathlib import Path\nfrom train.sweeps import state\n"
            "with state.held(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"
        )
        holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        try:
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(UserError, match=f"process {holder.pid} on .* since 20"), state.held(tmp_path):
                pass
        finally:
            os.kill(holder.pid, signal.SIGKILL)
            holder.wait()
            holder.stdout.close()
        with state.held(tmp_path):
            assert f"process {os.getpid()} " in (tmp_path / state.LOCK_NAME).read_text()

    def test_it_ends_with_the_block(self, tmp_path):
        for _ in range(2):
            with state.held(tmp_path):
                pass

    def test_a_path_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(UserError, match="cannot be written"), state.held(tmp_path / "file" / "out"):
            pass


class TestRuns:
    def test_states(self, tmp_path):
        assert state.run_state(tmp_path / "none") == "waiting"
        (tmp_path / "checkpoint-5").mkdir()
        assert state.run_state(tmp_path) == "unfinished"
        assert state.last_checkpoint_step(tmp_path) == 5
        (tmp_path / "failed.json").touch()
        assert state.run_state(tmp_path) == "failed"
        (tmp_path / "run.json").touch()
        assert state.run_state(tmp_path) == "finished"

    @pytest.mark.parametrize(
        ("keep", "gone"),
        [
            ("all", set()),
            ("model", {"checkpoint-5", ".data"}),
            ("metrics", {"checkpoint-5", ".data", "model.safetensors", "tokenizer.json", "training_args.bin"}),
        ],
    )
    def test_what_stays(self, tmp_path, keep, gone):
        (tmp_path / "checkpoint-5").mkdir()
        (tmp_path / ".data").mkdir()
        files = ("model.safetensors", "tokenizer.json", "training_args.bin", "run.json", "metrics.jsonl", "log.txt")
        for name in (*files, "checkpoint-5/model.safetensors", "eval_documents.parquet", "loss_curves.png"):
            (tmp_path / name).touch()
        before = {path.name for path in tmp_path.iterdir()}
        for _ in range(2):  # doing it twice is harmless
            state.remove_what_is_not_kept(tmp_path, keep)
        assert before - {path.name for path in tmp_path.iterdir()} == gone

    def test_runs_go_by_seed_first(self, tmp_path):
        runs = state.list_runs(tmp_path, POINTS, [3, 1])
        assert [run.name for run in runs] == ["sft/3", "go/3", "sft/1", "go/1"]
        assert runs[0].directory == tmp_path / "runs" / "sft" / "3"


def test_the_description_is_what_comes_back_from_the_file(tmp_path):
    asked = describe()
    state.save_sweep(tmp_path, None, asked)
    assert state.read_sweep(tmp_path) == asked == json.loads(json.dumps(asked))
    assert asked["points"][1] == {"name": "go", "settings": {"shards": "s", "eta": 0.5}, "control_of": None}
    assert time.strptime(asked["started"][:19], "%Y-%m-%dT%H:%M:%S")
