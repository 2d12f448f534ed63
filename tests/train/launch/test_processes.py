"""`train run` in several processes, through the real commands: torchrun, and Ray on a cluster of two nodes."""

import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from common.errors import UserError
from tests.train.loop.test_exactness import sparse_shards
from tests.train.runs import make_trainer, small_model
from train.launch import ray as ray_launch
from train.launch.ray import Launch, wanted, words_of

FLAGS = [
    *("--shards", "shards", "--grouper", "first", "--model", "tiny", "--max_steps", "4"),
    *("--global_batch_size", "8", "--per_device_train_batch_size", "2", "--save_strategy", "no"),
    # so that a gradient of the wrong size shows
    *("--optim", "sgd", "--learning_rate", "0.3", "--lr_scheduler_type", "constant", "--max_grad_norm", "0"),
]
PYTHON = Path(sys.executable).parent


def run(directory, *command, timeout_s=240):
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(Path(__file__).parents[3]),
    }
    words = [str(word) for word in command]
    process = subprocess.Popen(
        words, cwd=directory, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        stdout, stderr = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun ends its processes, which killing it would leave behind
        stdout, stderr = process.communicate()
    return subprocess.CompletedProcess(words, process.returncode, stdout, stderr)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, tokenizer):
    """A directory with shards and a run of one process in it: 21 documents, so the third step of an epoch has five."""
    directory = tmp_path_factory.mktemp("processes")
    sparse_shards(directory / "shards", tokenizer, 21)
    done = run(directory, sys.executable, "-m", "train.cli", "run", *FLAGS, "--output_dir", "alone")
    assert done.returncode == 0, done.stderr[-3000:]
    return directory


def check(directory, output, done):
    assert done.returncode == 0, done.stderr[-5000:]
    assert "2 × 2 accumulated × 2 processes = 8 documents" in done.stdout + done.stderr
    assert done.stdout.count("step     4/4") == 1  # one rank speaks
    expected, found = (load_file(directory / name / "model.safetensors") for name in ("alone", output))
    assert max((expected[name] - found[name]).abs().max().item() for name in expected) < 1e-5
    assert {path.name for path in (directory / output).iterdir()} == {
        path.name for path in (directory / "alone").iterdir()
    }


@pytest.mark.slow
class TestTwoProcesses:
    def test_torchrun(self, alone):
        command = [PYTHON / "torchrun", "--standalone", "--nproc-per-node", "2", "-m", "train.cli", "run", *FLAGS]
        check(alone, "torchrun", run(alone, *command, "--output_dir", "torchrun"))

    def test_sharding_that_accelerate_would_leave_out_on_cpus_is_refused(self, alone):
        command = [PYTHON / "torchrun", "--standalone", "--nproc-per-node", "2", "-m", "train.cli", "run", *FLAGS]
        done = run(alone, *command, "--fsdp", "--output_dir", "sharded")
        assert done.returncode != 0
        assert "error: --fsdp: accelerate shards only over several processes" in done.stderr

    def test_ray_on_two_nodes(self, alone):
        from ray.cluster_utils import Cluster

        node = {"num_cpus": 1, "object_store_memory": 100 << 20}
        cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        try:
            cluster.add_node(**node)
            command = [PYTHON / "train", "run", *FLAGS, "--workers", "2", "--address", cluster.address]
            check(alone, "ray", run(alone, *command, "--output_dir", "ray"))
        finally:
            cluster.shutdown()

    @pytest.mark.timeout(600)
    def test_ray_starts_a_group_again_whose_worker_was_killed(self, alone):
        """SIGKILL to one of two workers behind the checkpoint of step 2: the run ends as if nothing had happened."""
        words = [PYTHON / "train", "run", *FLAGS, "--save_strategy", "steps", "--save_steps", "2", "--use_cpu"]
        words += ["--max_steps", "16", "--learning_rate", "0.01"]  # at 0.3, rounding grows from step to step
        run(alone, *words, "--output_dir", "unbroken")
        with killing_a_worker(alone / "broken") as killed:
            done = run(
                alone, *words, "--workers", "2", "--global_batch_size", "8", "--output_dir", "broken", timeout_s=500
            )
        assert killed, "the run was over before a worker could be killed"
        assert done.returncode == 0, done.stderr[-5000:]
        assert "going on from" in done.stdout + done.stderr
        expected, found = (load_file(alone / name / "model.safetensors") for name in ("unbroken", "broken"))
        assert max((expected[name] - found[name]).abs().max().item() for name in expected) < 1e-4
        assert not (alone / "broken" / ".ray").exists()


@contextlib.contextmanager
def killing_a_worker(output):
    """Kill one of a run's Ray workers as soon as the run has a checkpoint; yields a list that then holds its pid."""
    killed, over = [], threading.Event()

    def watch():
        while not over.wait(0.05):
            if not any(output.glob("checkpoint-*/trainer_state.json")):
                continue
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if "RayTrainWorker" in " ".join(process.cmdline()):
                        process.kill()
                        killed.append(process.pid)
                        return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def test_processes_that_were_not_joined_are_refused(tmp_path, tokenizer, monkeypatch):
    """What accelerate makes of a launcher that it does not know: every process a run of its own, all of one name."""
    shards = sparse_shards(tmp_path / "shards", tokenizer, 4)
    monkeypatch.setattr("train.loop.devices.world_size", lambda: 2)
    with pytest.raises(UserError, match="2 processes were started, but accelerate joined 1"):
        make_trainer(shards, tokenizer, tmp_path, small_model(tokenizer), grouper="first")


class TestWhatIsAskedOfRay:
    def test_nothing_without_workers(self):
        assert wanted(["--shards", "s"]) is None

    def test_by_hand(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        words = ["--workers", "3", "--address=auto", "--output-dir", "out", "--use_cpu"]
        assert wanted(words) == Launch(3, "auto", tmp_path / "out", True)

    def test_a_file_says_it_too(self, tmp_path):
        (tmp_path / "run.yaml").write_text(f"workers: 2\noutput_dir: {tmp_path}/out\n")
        words = ["--config", str(tmp_path / "run.yaml")]
        assert wanted(words) == Launch(2, None, tmp_path / "out", False)
        assert wanted([*words, "--workers", "4"]).num_workers == 4

    @pytest.mark.parametrize(
        ("words", "text"),
        [
            (["--address", "auto"], "give both, or neither"),
            (["--workers", "2"], "--output_dir: several processes"),
            (["--workers", "0", "--output_dir", "x"], "at least 1, found '0'"),
            (["--workers", "two", "--output_dir", "x"], "at least 1, found 'two'"),
        ],
    )
    def test_what_does_not_go_together(self, words, text):
        with pytest.raises(UserError, match=text):
            wanted(words)

    def test_torchrun_and_workers_exclude_each_other(self, monkeypatch):
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert wanted(["--shards", "s"]) is None
        with pytest.raises(UserError, match="torchrun or accelerate has started"):
            wanted(["--workers", "2", "--output_dir", "x"])
        monkeypatch.setenv("SFT_GO_RAY_WORKER", "1")  # in a worker, where the words are the same
        assert wanted(["--workers", "2", "--output_dir", "x"]) is None

    def test_the_words_of_a_group_that_is_started_again(self, tmp_path):
        output, words = tmp_path / "out", ["--output_dir", str(tmp_path / "out"), "--max_steps", "4"]
        assert words_of(words, tmp_path, "0") == words
        assert words_of(words, tmp_path, "1") == words
        assert words_of(words, tmp_path, "1") == [*words, "--resume_from_checkpoint", "true"]
        elsewhere = [*words, "--resume_from_checkpoint", str(tmp_path / "other" / "checkpoint-2")]
        assert words_of(elsewhere, tmp_path, "1") == elsewhere  # the run has no checkpoint of its own yet
        (output / "checkpoint-3").mkdir(parents=True)
        for name in ("resume.json", "trainer_state.json"):
            (output / "checkpoint-3" / name).write_text("{}")
        assert words_of(elsewhere, tmp_path, "1") == [*elsewhere, "--resume_from_checkpoint", "true"]
        (tmp_path / "refused-0").write_text("--eta: expected a share")
        with pytest.raises(UserError, match="--eta: expected a share"):
            words_of(words, tmp_path, "1")

    @pytest.mark.parametrize(
        ("resources", "workers", "use_cpu", "expected"),
        [
            ({"CPU": 8.0, "GPU": 2.0}, 2, False, True),
            ({"CPU": 8.0, "GPU": 2.0}, 4, True, False),
            ({"CPU": 8.0}, 4, False, False),
            ({"CPU": 8.0, "GPU": 2.0}, 4, False, "has 2 GPUs"),
            ({"CPU": 2.0}, 4, False, "has 2 CPUs"),
        ],
    )
    def test_a_gpu_each_or_none(self, resources, workers, use_cpu, expected):
        wish = Launch(workers, None, Path("out"), use_cpu)
        if isinstance(expected, bool):
            assert ray_launch._has_gpus(resources, wish) is expected
        else:
            with pytest.raises(UserError, match=expected):
                ray_launch._has_gpus(resources, wish)

    def test_a_workers_own_error_is_found_in_rays(self):
        from ray.train import WorkerGroupError
        from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

        told = UserError("no such column")
        failure = WorkerGroupError("long", {0: UserExceptionWithTraceback(told, "trace"), 1: RuntimeError("peer gone")})
        assert ray_launch._user_error(failure) is told
        assert ray_launch._user_error(RuntimeError("out of memory")) is None
