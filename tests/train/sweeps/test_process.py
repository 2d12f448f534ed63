"""One run's process: it ends with whoever started it, its log is its lock, and its failure is written down."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from train.sweeps import process
from train.sweeps.process import Job, Outcome, run_job, tail
from train.sweeps.progress import Progress, running_progress


def job(directory: Path, *words: str, **changes) -> Job:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    said = [*words, "--output_dir", str(directory)]
    return Job(
        **{"name": "p/1", "directory": str(directory), "words": said, "keep": "model", **changes},
        cwd=str(directory.parent),
        environment=environment,
        num_threads=None,
    )


def alive(pid: int) -> bool:
    """Return whether a process runs; a dead one that nobody has asked after does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition, timeout_s=60.0):
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)


def holders_of(directory: Path) -> list[int]:
    log = directory / "log.txt"
    return [] if not log.is_file() else [pid for pid in process._holders(log) if alive(pid)]


def in_both_ways(request):
    """Tell whether runs are forked from a process that has paid for the imports, which ends with the fixture."""
    yield request.param
    if process._warm is not None:
        process._warm.end()
        process._warm = None


BOTH = {"params": [True, False], "ids": ["forked", "anew"]}
warm = pytest.fixture(**BOTH)(in_both_ways)
kept_warm = pytest.fixture(scope="class", **BOTH)(in_both_ways)  # for tests that leave it as it was


class TestAttacks:
    """Whoever dies, no run outlives its sweep, and none writes beside another."""

    CODE = "import sys, json\nfrom train.sweeps.process import Job, run_job\nrun_job(Job(**json.loads(sys.argv[1])))\n"

    def start(self, shards, directory, warm):
        words = ("--shards", str(shards), "--model", "tiny", "--max_steps", "100000", "--save_strategy", "no")
        planned = json.dumps(vars(job(directory, *words, warm=warm)))
        return subprocess.Popen([sys.executable, "-c", self.CODE, planned])

    @pytest.mark.slow
    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl is Linux's")
    def test_a_killed_supervisor_takes_its_run_with_it(self, shards, tmp_path, warm):
        directory = tmp_path / "run"
        supervisor = self.start(shards, directory, warm)
        wait_until(lambda: running_progress(directory).step)
        runs = [pid for pid in holders_of(directory) if pid != supervisor.pid]
        assert runs
        supervisor.send_signal(signal.SIGKILL)
        supervisor.wait()
        wait_until(lambda: not holders_of(directory), timeout_s=5)
        assert not any(map(alive, runs))


class TestTheLogIsTheLock:
    def test_an_attempt_waits_for_what_is_left_of_another(self, tmp_path, monkeypatch):
        directory = tmp_path / "run"
        directory.mkdir()
        with open(directory / "log.txt", "ab") as log:
            fcntl.flock(log, fcntl.LOCK_EX)
            # A process that has only inherited the log holds the lock too, as a run left over would.
            left_over = subprocess.Popen(["sleep", "60"], stdout=log)
        monkeypatch.setattr(process, "LOCK_WAIT_S", 0.5)
        outcome = run_job(job(directory, "--shards", "nowhere"))
        assert outcome.status == 1
        assert f"still held after 0 s by a process of an earlier attempt ({left_over.pid})" in outcome.tail[0]
        monkeypatch.setattr(process, "LOCK_WAIT_S", 30.0)
        threading.Timer(1.0, left_over.kill).start()
        (directory / "run.json").write_text("{}")  # so that the attempt has nothing to do once it has the lock
        started = time.monotonic()
        assert run_job(job(directory)).status == 0
        assert 0.5 < time.monotonic() - started < 20
        left_over.wait()


class TestWhatAFailedRunSays:
    """`sitecustomize` breaks the run's interpreter, as a package that changes below a sweep does."""

    @pytest.mark.parametrize(
        ("broken", "said"),
        [
            ("sys.modules['train.cli'] = None", "import of train.cli halted"),
            (
                "sys.modules['train.cli'] = types.SimpleNamespace(main=lambda *_: os._exit(3))",
                "status 3 and wrote nothing",
            ),
        ],
    )
    def test_from_its_very_start(self, tmp_path, monkeypatch, warm, broken, said):
        early = f"import os, sys, types\n{broken}\nsys.modules['matplotlib'] = None\n"
        (tmp_path / "sitecustomize.py").write_text(early)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        outcome = run_job(job(tmp_path / "run", warm=warm))
        assert said in outcome.tail[-1]
        assert json.loads((tmp_path / "run/failed.json").read_text())["tail"] == outcome.tail


@pytest.mark.slow
class TestFailures:
    def test_the_status_and_the_last_lines_are_kept(self, tmp_path, kept_warm):
        directory = tmp_path / "run"
        outcome = run_job(job(directory, "--shards", "nowhere", warm=kept_warm))
        assert outcome.status == 1
        assert "nowhere" in outcome.tail[-1]
        content = json.loads((directory / "failed.json").read_text())
        assert (content["status"], content["tail"]) == (1, outcome.tail)
        assert content["at"].startswith("20")
        assert not outcome.tail[0].startswith("---")

    def test_a_signal_is_named(self, shards, tmp_path, kept_warm):
        directory = tmp_path / "run"
        words = ("--shards", str(shards), "--model", "tiny", "--max_steps", "100000", "--save_strategy", "no")
        outcomes: list[Outcome] = []
        thread = threading.Thread(target=lambda: outcomes.append(run_job(job(directory, *words, warm=kept_warm))))
        thread.start()
        wait_until(lambda: running_progress(directory).step)
        victim = max(pid for pid in holders_of(directory) if pid != os.getpid())
        os.kill(victim, signal.SIGKILL)
        thread.join(30)
        assert outcomes[0].status == -9
        assert "signal 9 (SIGKILL)" in outcomes[0].tail[-1]
        assert (directory / "failed.json").is_file()


def test_a_directory_that_cannot_be_made_is_an_outcome(tmp_path):
    (tmp_path / "file").touch()
    outcome = run_job(job(tmp_path / "file" / "run"))
    assert outcome.status == 1
    assert "Not a directory" in outcome.problem


def test_a_disk_that_takes_nothing_is_an_outcome(tmp_path):
    code = (
        "import resource, sys, json\nfrom train.sweeps.process import Job, run_job\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"  # every write fails, as on a full disk
        "print(json.dumps(vars(run_job(Job(**json.loads(sys.argv[1]))))))\n"
    )
    planned = json.dumps(vars(job(tmp_path / "run", "--shards", "nowhere")))
    done = subprocess.run([sys.executable, "-c", code, planned], capture_output=True, text=True, check=True)
    outcome = json.loads(done.stdout)
    assert outcome["status"] == 1
    assert "File too large" in outcome["tail"][-1]
    assert "failed.json: could not be written (File too large)" in outcome["problem"]


class TestEnvironment:
    def environment(self, monkeypatch, given, here, **changes):
        for name, value in here.items():
            monkeypatch.setenv(name, value)
        planned = Job("p/1", "d", [], "model", ".", given, **{"num_threads": None, **changes})
        return process._environment(planned)

    def test_is_the_sweeps_own_with_the_gpus_that_ray_chose(self, monkeypatch):
        given = {"PATH": "p", "CUDA_VISIBLE_DEVICES": "0,1,2,3", "WORLD_SIZE": "4"}
        here = {"CUDA_VISIBLE_DEVICES": "2", "RAY_ADDRESS": "x", "OMP_NUM_THREADS": "1"}
        found = self.environment(monkeypatch, given, here, runs_per_node=10**6)
        assert found == {"PATH": "p", "CUDA_VISIBLE_DEVICES": "2", "OMP_NUM_THREADS": "1"}

    def test_threads_are_shared_out(self, monkeypatch):
        monkeypatch.setattr(os, "cpu_count", lambda: 16)
        assert self.environment(monkeypatch, {}, {}, runs_per_node=3)["OMP_NUM_THREADS"] == "5"
        assert self.environment(monkeypatch, {"OMP_NUM_THREADS": "7"}, {})["OMP_NUM_THREADS"] == "7"
        # On a cluster's node, Ray has set one thread a CPU that the task has taken.
        found = self.environment(monkeypatch, None, {"OMP_NUM_THREADS": "1", "RAY_JOB_ID": "1"}, runs_per_node=2)
        assert found["OMP_NUM_THREADS"] == "8"
        assert not any(name.startswith("RAY_") for name in found)


class TestProgress:
    LOG = "--- then on here: train run\nstep     3/20  loss 8.1000  all 8.2  0.50 s/step, 0:08 left\n"

    def test_is_read_from_the_last_attempt(self, tmp_path):
        (tmp_path / "log.txt").write_text(self.LOG)
        assert running_progress(tmp_path) == Progress(3, 20, 8.1, 0.5, "0:08")
        (tmp_path / "log.txt").write_text(self.LOG + "--- now on here: train run\nbefore the first step\n")
        assert running_progress(tmp_path) == Progress(said="starting")

    def test_lines_of_a_log_that_is_being_written(self, tmp_path):
        (tmp_path / "log.txt").write_bytes(b"a\r\n\n b \xff\r100%|##|\rlast \nhalf")
        assert tail(tmp_path / "log.txt", 3) == ["a", "last", "half"]
        assert tail(tmp_path / "log.txt", 1, start=3) == ["half"]
        assert tail(tmp_path / "none", 1) == []
