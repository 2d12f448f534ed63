"""Ray places the runs of a sweep.

What enters: the runs that are left, and what each takes. What leaves: their outcomes. The driver holds the plan alone;
a task on some node starts `train run` there (`process.py`) and waits for it. A task that is lost with its node is
started again by Ray and goes on from the run's checkpoint.

On a cluster, shards, models and the sweep's directory must be on a file system that all nodes see under the same names,
and the project must be installed on them.
"""

import os
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from common.clusters import unreachable
from common.errors import UserError
from train.sweeps.points import words
from train.sweeps.process import PASSED_ON, Job, Outcome, run_job
from train.sweeps.state import Run
from train.sweeps.table import SweepTable

POLL_S = 0.5
CANCEL_WAIT_S = 15.0
RETRIES = 3  # of a run whose machine was lost


@dataclass(frozen=True)
class Placement:
    """Where runs go, and how many at a time."""

    address: str | None = None  # of a Ray cluster; None: this machine
    gpus_per_run: float | None = None  # None: one where there are GPUs
    runs_at_once: int | None = None  # None: what the GPUs hold; on CPUs one a machine


class Stopped(Exception):
    """The sweep was asked to end: by Ctrl-C or SIGTERM."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


def run_all(runs: Sequence[Run], placement: Placement, keep: str, table: SweepTable) -> dict[str, Outcome]:
    """Run what is left, and return each run's outcome by its name.

    Raises:
        UserError: Ray cannot be reached or started, or has not what a run takes.
        Stopped: after the runs have ended.
    """
    with _ray(placement, len(runs)) as ray, _listening() as heard:
        gpus = _gpus_per_run(ray.cluster_resources(), placement)
        waiting = deque(runs)
        running: dict[Any, Run] = {}
        outcomes: dict[str, Outcome] = {}
        task = ray.remote(run_job).options(
            num_cpus=1, num_gpus=gpus, max_retries=RETRIES, scheduling_strategy="SPREAD" if placement.address else None
        )
        try:
            while waiting or running:
                if heard:
                    raise Stopped(heard[0])
                table.capacity = capacity = _capacity(ray, placement, gpus)
                while waiting and len(running) < capacity:
                    run = waiting.popleft()
                    running[task.remote(_job(run, keep, placement, ray, capacity, gpus))] = run
                    table.started(run)
                done, _ = ray.wait(list(running), timeout=POLL_S)
                for reference in done:
                    run = running.pop(reference)
                    outcomes[run.name] = _outcome(ray, reference)
                    table.ended(run, outcomes[run.name])
                table.update()
        finally:
            _cancel(ray, list(running))
    return outcomes


@contextmanager
def _listening() -> Iterator[list[int]]:
    """Yield a list that SIGINT and SIGTERM write themselves into: Ray's calls do not bear an exception from a handler.

    Inside of Ray's own block: starting Ray sets handlers that would abort this process.
    """
    heard: list[int] = []
    before = {
        number: signal.signal(number, lambda number, frame: heard.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


@contextmanager
def _ray(placement: Placement, num_runs: int) -> Iterator[Any]:
    """Yield Ray, started on this machine or joined."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray would kill the waiting task, where the memory is its `train run`'s; the kernel chooses better.
    os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")
    import ray

    options: dict[str, Any] = {
        "logging_level": "ERROR",
        "logging_config": ray.LoggingConfig(log_level="ERROR"),
        "log_to_driver": False,
    }
    if placement.address is None:
        num_cpus = max(min(placement.runs_at_once or os.cpu_count() or 1, num_runs), 1)  # bookkeeping: one a run
        options |= {"address": "local", "include_dashboard": False, "num_cpus": num_cpus}
        options["object_store_memory"] = 80 * 2**20  # nothing large goes through it
    else:
        options["address"] = placement.address
        options["runtime_env"] = {"env_vars": {name: os.environ[name] for name in PASSED_ON if name in os.environ}}
    try:
        ray.init(**options)
    except Exception as error:
        otherwise = "Without --address, the runs go on this machine." if placement.address else ""
        raise unreachable(error, placement.address, otherwise) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _gpus_per_run(resources: dict[str, float], placement: Placement) -> float:
    """Return the GPUs that each run takes; Ray would wait for ever for what it does not have."""
    held = resources.get("GPU", 0.0)
    wanted = placement.gpus_per_run
    if wanted is None:
        return 1.0 if held else 0.0
    if wanted > held:
        where = f"the cluster at {placement.address}" if placement.address else "this machine"
        raise UserError(f"--gpus-per-run {wanted:g}: {where} has {held:g} GPUs. Give fewer; 0 runs on CPUs.")
    return wanted


def _capacity(ray: Any, placement: Placement, gpus: float) -> int:
    """Return how many runs go on at the same time, on the nodes that there are now."""
    if gpus:
        nodes = [node["Resources"].get("GPU", 0.0) for node in ray.nodes() if node["Alive"]]
        # A share of a GPU never spans two of them.
        fits = sum(int(held) * int(1 / gpus) if gpus < 1 else int(held / gpus) for held in nodes)
        return max(1, min(fits, placement.runs_at_once or fits))
    return placement.runs_at_once or _num_nodes(ray)


def _num_nodes(ray: Any) -> int:
    return max(1, sum(bool(node["Alive"]) for node in ray.nodes()))


def _job(run: Run, keep: str, placement: Placement, ray: Any, capacity: int, gpus: float) -> Job:
    said = [*words(run.point.settings), "--seed", str(run.seed), "--output_dir", str(run.directory)]
    said += ["--point", run.point.name, "--resume_from_checkpoint", "true"]
    if keep != "all" and "save_total_limit" not in run.point.settings:
        said += ["--save_total_limit", "1"]  # the older one goes when the newer is complete
    return Job(
        name=run.name,
        directory=str(run.directory.absolute()),
        words=said,
        keep=keep,
        cwd=os.getcwd(),
        environment=None if placement.address else dict(os.environ),
        num_threads=None,
        runs_per_node=-(-capacity // _num_nodes(ray)),
        warm=not gpus and not run.point.settings.get("workers"),
    )


def _outcome(ray: Any, reference: Any) -> Outcome:
    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:  # its machine was lost, again and again
        first = (str(error).strip().splitlines() or ["lost"])[0]
        return Outcome(1, [f"{type(error).__name__}: {first}"], 0.0)


def _cancel(ray: Any, references: list[Any]) -> None:
    """End the runs that are going on, and wait until they have."""
    for reference in references:
        ray.cancel(reference)
    if references:
        ray.wait(references, num_returns=len(references), timeout=CANCEL_WAIT_S)
