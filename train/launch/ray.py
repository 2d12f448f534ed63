"""`train run --workers N`: the same run in N processes, started by Ray Train on this machine or on a cluster.

What enters: the words of the command line. What leaves: what `train run` leaves, written by rank 0. Each worker parses
the words again and calls the same `run`, with its rank in the environment as `torchrun` would have put it there, so all
that is true of a run under `torchrun` is true here.

A worker that dies (its node is taken away, it runs out of memory, a GPU falls off the bus) takes its group with it: Ray
Train starts the group again, on the nodes that are left, and it goes on from the last whole checkpoint. A mistake that
the user can mend is no such failure: it is told at once.

Nothing is sent but the words and the working directory. On a cluster, shards, models and the output directory must be
on a file system that all nodes see under the same names, and the project must be installed on them.
"""

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common.clusters import unreachable
from common.errors import UserError
from train.settings.arguments import RESUME, RESUME_WORDS, look_up

STORAGE_NAME = ".ray"  # what Ray Train writes of its own, gone when the run has ended
NOTES_NAME = "notes"  # in there: which ranks have started, and what they refused
MAX_FAILURES = 3  # of the worker group, before the run counts as failed
PASSED_ON = ("OMP_NUM_THREADS", "HF_HOME", "HF_TOKEN", "HF_HUB_OFFLINE", "WANDB_API_KEY")


class Launch(NamedTuple):
    """What the launcher itself needs to know of the command line."""

    num_workers: int
    address: str | None
    output: Path
    use_cpu: bool


def wanted(arguments: Sequence[str]) -> Launch | None:
    """Return what was asked of Ray, or None where nothing was, or where this is one of the processes that it started.

    Raises:
        UserError: settings that go with several processes are missing, or are there without them.
    """
    said = look_up(arguments, ("workers", "address", "output_dir", "use_cpu"))
    workers, address, output = said["workers"], said["address"], said["output_dir"]
    if "WORLD_SIZE" in os.environ:
        if workers and "SFT_GO_RAY_WORKER" not in os.environ:
            raise UserError("--workers: torchrun or accelerate has started these processes already; remove the flag.")
        return None
    if workers is None:
        if address is not None:
            raise UserError("--address: names the Ray cluster for --workers; give both, or neither.")
        return None
    if output is None:
        raise UserError("--output_dir: several processes need to agree on it, so it has no default here; give one.")
    if not str(workers).isdecimal() or int(workers) < 1:
        raise UserError(f"--workers: expected a whole number of at least 1, found {workers!r}.")
    use_cpu = str(said["use_cpu"] or "false").lower() in ("true", "1", "yes")
    return Launch(int(workers), address, Path(output).absolute(), use_cpu)


def launch(arguments: Sequence[str], wish: Launch) -> None:
    """Start the workers and wait for them.

    Raises:
        UserError: Ray cannot be reached, has not as many CPUs or GPUs, or a worker raised one.
    """
    # Log lines differ by their numbers, which Ray's filter of repeated lines would take for the same line.
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from train.run import configure

    if wish.address is None:
        configure(arguments)  # the workers find the same problems, on this machine, but ten seconds later
    owns_ray = not ray.is_initialized()
    if owns_ray:
        _start(ray, wish)
    storage = wish.output / STORAGE_NAME
    shutil.rmtree(storage, ignore_errors=True)  # of a launch that was killed
    try:
        resources = ray.cluster_resources()
        use_gpu = _has_gpus(resources, wish)
        # Ray gives a worker as many threads as CPUs. What one machine has is shared out; nodes may be of any size.
        num_cpus = 1 if wish.address else int(resources["CPU"]) // wish.num_workers
        each = {"CPU": num_cpus, "GPU": 1} if use_gpu else {"CPU": num_cpus}
        (storage / NOTES_NAME).mkdir(parents=True, exist_ok=True)
        trainer = TorchTrainer(
            _work,
            train_loop_config={
                "arguments": list(arguments),
                "argv": sys.argv,
                "directory": os.getcwd(),
                "notes": str(storage / NOTES_NAME),
            },
            scaling_config=ScalingConfig(num_workers=wish.num_workers, use_gpu=use_gpu, resources_per_worker=each),
            run_config=RunConfig(
                name="run", storage_path=str(storage), failure_config=FailureConfig(max_failures=MAX_FAILURES)
            ),
        )
        trainer.fit()
    except Exception as error:
        told = _user_error(error)
        if told is None:
            raise
        raise UserError(str(told)) from error
    finally:
        shutil.rmtree(storage, ignore_errors=True)
        if owns_ray:
            ray.shutdown()


def _start(ray: Any, wish: Launch) -> None:
    variables = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    variables["RAY_TRAIN_ENABLE_PRINT_PATCH"] = "0"  # it prints every line twice
    options: dict[str, Any] = {
        "logging_level": "ERROR",
        "logging_config": ray.LoggingConfig(log_level="ERROR"),
        "runtime_env": {"env_vars": variables},
    }
    if wish.address is None:
        # One CPU a worker is Ray's bookkeeping; more workers than CPUs share them.
        num_cpus = max(wish.num_workers, os.cpu_count() or 1)
        options |= {"address": "local", "include_dashboard": False, "num_cpus": num_cpus}
    else:
        options["address"] = wish.address
    try:
        ray.init(**options)
    except Exception as error:
        otherwise = "Without --address, the workers run on this machine." if wish.address else ""
        raise unreachable(error, wish.address, otherwise) from error


def _has_gpus(resources: dict[str, float], wish: Launch) -> bool:
    """Return whether each worker gets a GPU; Ray would wait for ever for what it does not have."""
    num_gpus, num_cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
    where = f"the cluster at {wish.address}" if wish.address else "this machine"
    if wish.num_workers > num_cpus:
        raise UserError(f"--workers {wish.num_workers}: {where} has {num_cpus} CPUs, and each worker takes one.")
    if wish.use_cpu or num_gpus == 0:
        return False
    if num_gpus < wish.num_workers:
        raise UserError(
            f"--workers {wish.num_workers}: {where} has {num_gpus} GPUs, and each worker takes one. Use --workers "
            f"{num_gpus}, or --use_cpu true."
        )
    return True


def _work(job: dict[str, Any]) -> None:
    """Be one rank: what `train run` does in a process that `torchrun` started."""
    os.environ["SFT_GO_RAY_WORKER"] = "1"
    try:
        os.chdir(job["directory"])  # so that paths mean what they meant where the command was typed
    except OSError as error:
        raise UserError(
            f"{job['directory']}: this node does not have the directory that the command was started in ({error}). "
            "Start it in one that all nodes of the cluster see."
        ) from error
    sys.argv = job["argv"]  # for run.json
    from train.run import configure, prepare_process, run

    notes, rank = Path(job["notes"]), os.environ["RANK"]
    try:
        prepare_process()
        run(configure(words_of(job["arguments"], notes, rank)))
    except UserError as error:
        (notes / f"refused-{rank}").write_text(str(error), encoding="utf-8")
        raise


def words_of(arguments: Sequence[str], notes: Path, rank: str) -> list[str]:
    """Return a worker's words: those that were typed; where its group starts again, also to go on from a checkpoint.

    `notes` is a directory that all starts of the group share. A rank that finds its own note there was started before.

    Raises:
        UserError: what a worker raised before, so that no restart tries it again.
    """
    for told in sorted(notes.glob("refused-*")):
        raise UserError(told.read_text(encoding="utf-8"))
    note = notes / f"started-{rank}"
    if not note.exists():
        note.touch()
        return list(arguments)
    from train.loop.resume import find_checkpoint

    said = look_up(arguments, (RESUME, "output_dir"))
    begun_elsewhere = str(said[RESUME]).lower() not in RESUME_WORDS
    if begun_elsewhere and find_checkpoint(Path(said["output_dir"])) is None:
        return list(arguments)
    return [*arguments, "--resume_from_checkpoint", "true"]


def _user_error(error: BaseException | None) -> UserError | None:
    """Return the `UserError` that a failure of Ray Train was caused by, if it was."""
    waiting: list[Any] = [error]
    seen: set[int] = set()
    while waiting:
        cause = waiting.pop(0)
        if cause is None or id(cause) in seen:
            continue
        if isinstance(cause, UserError):
            return cause
        seen.add(id(cause))
        failures = getattr(cause, "worker_failures", None) or {}
        inner = [getattr(cause, name, None) for name in ("_base_exc", "cause", "__cause__")]
        waiting += [*failures.values(), *inner]
    return None
