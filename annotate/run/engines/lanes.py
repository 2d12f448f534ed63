"""Where items of a stage run on Ray: as tasks, or in actors that keep a model loaded.

What enters: a few items. What leaves: a reference to their results. A lane knows how many items it takes at a time and
what processes there are; `annotate.run.engines.ray` knows the items. Ray places both where there is room. Nothing is
retried by Ray itself: a shard's attempts are counted by whose fault they were, which Ray's counters do not tell.
"""

import os
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

from annotate.run.engines.base import MakeWorker, Tell, Worker
from annotate.run.engines.resources import Cluster
from common.errors import UserError

TASKS_EACH = 2  # tasks in flight for each that can run at once: one waits in the node's queue
TASK_S, MOST_AT_ONCE = 0.5, 16  # of short items, a task takes so many that it lasts about so long
CPU_DEPTH, GPU_DEPTH = 2, 5  # shards in flight in an actor; on a GPU the others are read and written meanwhile
LOOK_AGAIN_S = 2.0
STARTS = 3  # times that an actor may die before its model is loaded

_workers: dict[str, Worker] = {}  # of this process, by stage


def work(key: str, make_worker: MakeWorker, threads: int, items: list[Any]) -> tuple[list[Any], float]:
    """Do items in this process, whose worker for the stage is built once. The body of every task.

    Returns:
        Their results, and the seconds that they took.
    """
    if key not in _workers:
        # Read by the tokenizer's thread pool when it starts; workers of all threads would slow each other down.
        os.environ.setdefault("RAYON_NUM_THREADS", str(threads))
        _workers.clear()  # the stages before have ended, or are built again
        _workers[key] = make_worker()
    started = time.monotonic()
    return [_workers[key].run(item) for item in items], time.monotonic() - started


class Model:
    """The body of every actor."""

    def __init__(self, make_worker: MakeWorker, threads: int):
        os.environ["RAYON_NUM_THREADS"] = str(threads)
        self.worker = make_worker()

    def ready(self) -> None:
        """Answer when the constructor has ended."""

    def run(self, items: list[Any]) -> tuple[list[Any], float]:
        """Do items; return as `work` does."""
        started = time.monotonic()
        return [self.worker.run(item) for item in items], time.monotonic() - started


class Lane(ABC):
    """A place for the items of one stage."""

    looked = 0.0  # when the cluster was last looked at
    at_once = 1  # items that are to be given together

    def __init__(self, ray: Any):
        self.ray = ray

    @abstractmethod
    def free(self) -> int:
        """Return how many more times items can be taken now."""

    @abstractmethod
    def submit(self, items: list[Any]) -> Any:
        """Start items, and return a reference to their results. Only when `free()` is positive."""

    def starting(self) -> list[Any]:
        """Return references that are to be watched beside those of items."""
        return []

    def done(self, reference: Any) -> None:  # noqa: B027
        """Take note that items have ended, well or not."""

    def took(self, seconds: float) -> None:  # noqa: B027
        """Take note of how long each of some items took."""

    def started(self, reference: Any) -> None:  # noqa: B027
        """Take note that one of `starting()` has ended."""

    def look(self) -> None:
        """Look at the cluster again, if the last time was a while ago."""
        if time.monotonic() - self.looked >= LOOK_AGAIN_S:
            self.looked = time.monotonic()
            self.adapt(Cluster.now(self.ray))

    @abstractmethod
    def adapt(self, cluster: Cluster) -> None:
        """Take what the cluster has now."""

    def waits_for(self) -> str | None:
        """Say what keeps everything from running; None when something may run."""
        return None

    def close(self) -> None:  # noqa: B027
        """End what was started."""


class TaskLane(Lane):
    """Tasks: any free CPU of the cluster, in processes that Ray keeps."""

    def __init__(self, ray: Any, make_worker: MakeWorker, key: str, workers: int | None):
        super().__init__(ray)
        self.key = key
        self.workers = workers
        self.stage = ray.put(make_worker)
        self.remote = ray.remote(work)
        self.running = 0
        self.look()

    def adapt(self, cluster: Cluster) -> None:
        cpus = cluster.cpus_each(self.workers)
        self.slots = TASKS_EACH * max(1, self.workers or int(cluster.cpus))
        self.threads = max(1, int(cpus))
        self.task = self.remote.options(num_cpus=cpus, max_retries=0, scheduling_strategy="SPREAD")

    def free(self) -> int:
        return self.slots - self.running

    def submit(self, items: list[Any]) -> Any:
        self.running += 1
        return self.task.remote(self.key, self.stage, self.threads, items)

    def done(self, reference: Any) -> None:
        self.running -= 1

    def took(self, seconds: float) -> None:
        # A task costs the driver milliseconds, however short it is.
        self.at_once = max(1, min(MOST_AT_ONCE, int(TASK_S / max(seconds, 1e-6))))


@dataclass
class Member:
    """One actor."""

    actor: Any
    ready: Any  # a reference, until the actor has started
    running: set[Any] = field(default_factory=set)


class ActorLane(Lane):
    """Actors: each keeps a model loaded, on a GPU or a share of one, or on CPUs."""

    def __init__(self, ray: Any, make_worker: MakeWorker, workers: int | None, gpu_share: float | None, tell: Tell):
        super().__init__(ray)
        self.make_worker = ray.put(make_worker)
        self.workers = workers
        self.gpu_share = gpu_share  # None: on CPUs
        self.depth = CPU_DEPTH if gpu_share is None else GPU_DEPTH
        self.tell = tell
        self.members: list[Member] = []
        self.deaths = 0
        self.look()

    def adapt(self, cluster: Cluster) -> None:
        wanted = self._wanted(cluster)
        while len(self.members) < wanted:
            options: dict[str, Any]
            if self.gpu_share is None:
                options = {"num_cpus": cluster.cpus_each(self.workers)}
                threads = max(1, int(options["num_cpus"]))
            else:
                # No CPU: the stages that feed the models run beside them. One thread may not keep up with a GPU.
                options = {"num_gpus": self.gpu_share, "num_cpus": 0, "max_concurrency": GPU_DEPTH}
                threads = min(4, max(1, int(cluster.cpus) // max(1, wanted)))
            remote = self.ray.remote(Model).options(max_restarts=0, max_task_retries=0, **options)
            actor = remote.remote(self.make_worker, threads)
            self.members.append(Member(actor, actor.ready.remote()))
        for member in [m for m in self.members if m.ready is not None][: len(self.members) - wanted]:
            self._remove(member)  # nodes have gone, and it would wait for ever

    def _wanted(self, cluster: Cluster) -> int:
        if self.gpu_share is not None:
            return max(1, cluster.gpu_workers(self.gpu_share))
        return max(1, self.workers or int(cluster.cpus))

    def free(self) -> int:
        return sum(self.depth - len(member.running) for member in self.members if member.ready is None)

    def submit(self, items: list[Any]) -> Any:
        started = [member for member in self.members if member.ready is None]
        member = min(started, key=lambda member: len(member.running))
        reference = member.actor.run.remote(items)
        member.running.add(reference)
        return reference

    def starting(self) -> list[Any]:
        return [member.ready for member in self.members if member.ready is not None]

    def started(self, reference: Any) -> None:
        from ray.exceptions import RayActorError

        member = next(member for member in self.members if member.ready == reference)
        try:
            self.ray.get(reference)
            member.ready = None
            self.deaths = 0
        except RayActorError as error:
            self._remove(member)
            cause = user_error(error)
            if cause is not None:
                raise cause from None
            self.deaths += 1
            if self.deaths == STARTS:
                raise UserError(
                    f"a worker died {STARTS} times while it loaded its model ({first_line(error)}). If memory ran out, "
                    "use fewer --workers, a smaller --dtype, or larger machines. Finished shards are kept."
                ) from error
            self.looked = 0.0

    def done(self, reference: Any) -> None:
        from ray.exceptions import RayActorError

        member = next((member for member in self.members if reference in member.running), None)
        if member is None:
            return
        member.running.discard(reference)
        try:
            self.ray.get(reference)
        except RayActorError:
            self._remove(member)
            self.looked = 0.0
        except Exception:
            return  # the item's own error, which its owner reads again

    def _remove(self, member: Member) -> None:
        self.members.remove(member)
        self.ray.kill(member.actor)

    def waits_for(self) -> str | None:
        if any(member.ready is None for member in self.members):
            return None
        what = "CPUs" if self.gpu_share is None else f"{self.gpu_share:g} of a GPU"
        return f"waiting for a worker with a model to start ({what}); {Cluster.now(self.ray).describe()}"

    def close(self) -> None:
        for member in self.members:
            self.ray.kill(member.actor)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def user_error(error: BaseException) -> UserError | None:
    """Return the `UserError` that an actor's constructor raised, if that is what ended it."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, UserError):
        return cause
    if "UserError" in str(error):
        return UserError(str(error).split("UserError:")[-1].strip())
    return None
