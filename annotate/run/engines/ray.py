"""The Ray engine: the stages as Ray tasks and actors, on a local Ray that starts by itself or on a running cluster.

One item is one shard, and says where its data lie: no record and no token passes through the driver. Ray places tasks
where there is room; a task takes several shards where each is done in no time. A shard whose process dies is tried
again; the third time alone, so that nothing else can have been the cause; then it is set aside and the others go on. A
node that is lost costs a shard no attempt.
"""

import os
import signal
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Hashable, Iterable, Iterator
from itertools import islice
from typing import Any

from annotate.run.engines.base import Engine, MakeWorker, SetAside
from annotate.run.engines.lanes import ActorLane, Lane, TaskLane, first_line
from annotate.run.engines.resources import Cluster
from common.clusters import unreachable
from common.errors import UserError

ATTEMPTS = 3
LOST_NODES = 20  # times that a shard may lose its node
LOOK_S = 2.0
SAY_AFTER_S = 20.0  # without a result, the user is told what is waited for


class RayEngine(Engine):
    """Runs the stages on Ray.

    Args:
        address: an existing cluster ("auto", "ray://host:port", "host:port"); None starts a local Ray.
        workers: how many items of a CPU stage run at once; by default one a CPU.
        gpus_per_worker: share of a GPU that a worker with a model takes.
    """

    name = "ray"

    def __init__(self, address: str | None, workers: int | None, gpus_per_worker: float):
        # No usage reports; and a worker whose parent died ends.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        self.ray = ray
        self.workers = workers
        self.gpus_per_worker = gpus_per_worker
        self.where = "the Ray cluster" if address else "a local Ray"
        self.owns_cluster = not ray.is_initialized()
        if self.owns_cluster:
            self._start(address)
        self._said = time.monotonic()

    def _start(self, address: str | None) -> None:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if address is None:
            options |= {"address": "local", "include_dashboard": False, "object_store_memory": 1 << 30}
        else:
            options["address"] = address
        # Ray sets handlers of its own; those of the command end a run with a line and no stack.
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            self.ray.init(**options)
        except Exception as error:
            raise unreachable(error, address, "Or use --engine local.") from error
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _cluster(self) -> Cluster:
        return Cluster.now(self.ray)

    @property
    def device(self) -> str:
        return "cuda" if self._cluster().gpus else "cpu"

    @property
    def description(self) -> str:
        cluster = self._cluster()
        gpus = f", {cluster.gpus:g} GPUs" if cluster.gpus else ""
        workers = self.workers or max(1, int(cluster.cpus))
        return f"{self.where}, {workers} workers, {cluster.cpus:g} CPUs{gpus}"

    def check(self, uses_model: bool) -> None:
        cluster = self._cluster()
        if cluster.cpus <= 0:
            raise UserError(f"the stages of annotation need CPUs, and {cluster.describe()}. Add a node with CPUs.")

    def map(
        self, make_worker: MakeWorker, items: Iterable[Hashable], uses_model: bool = False
    ) -> Iterator[tuple[Any, Any]]:
        waiting = iter(items)
        first = next(waiting, None)
        if first is None:
            return
        lane: Lane
        if uses_model:
            share = self.gpus_per_worker if self._cluster().gpus else None
            lane = ActorLane(self.ray, make_worker, self.workers, share, self.tell)
        else:
            lane = TaskLane(self.ray, make_worker, uuid.uuid4().hex, self.workers)
        try:
            yield from self._run(lane, deque([first]), waiting)
        finally:
            lane.close()

    def _run(self, lane: Lane, again: deque[Any], waiting: Iterator[Any]) -> Iterator[tuple[Any, Any]]:
        """Keep the lane full.

        Args:
            again: items that come before those of `waiting`, one at a time: what dies with an item is its doing.
        """
        running: dict[Any, list[Any]] = {}
        suspects: deque[Any] = deque()  # their process died twice
        deaths: Counter[Any] = Counter()
        lost: Counter[Any] = Counter()
        alone = False
        more = True
        try:
            while True:
                lane.look()
                while not alone and lane.free() > 0:
                    items = [again.popleft()] if again else list(islice(waiting, lane.at_once))
                    if not items:
                        more = False
                        if running or not suspects:
                            break
                        items, alone = [suspects.popleft()], True
                    running[lane.submit(items)] = items
                if not (running or again or suspects or more):
                    return
                reference = self._wait(lane, running)
                if reference is None:
                    continue
                if reference not in running:
                    lane.started(reference)
                    continue
                items, alone = running.pop(reference), False
                lane.done(reference)
                try:
                    results, seconds = self._result(reference)
                except _ProcessDied as death:
                    if death.node_lost:
                        self.tell(f"a node was lost; {self._cluster().describe()}. Its shards are done elsewhere.")
                        lost.update(items)
                    elif len(items) > 1:
                        self.tell(f"a worker died ({death.reason}); its {len(items)} shards are tried one by one.")
                    else:
                        deaths.update(items)
                        self.tell(f"a worker died ({death.reason}), attempt {deaths[items[0]]} of {ATTEMPTS}.")
                    for item in items:
                        if deaths[item] == ATTEMPTS or lost[item] == LOST_NODES:
                            what = "its worker died" if deaths[item] == ATTEMPTS else "its node was lost"
                            times = max(deaths[item], lost[item])
                            yield item, SetAside(f"{what} {times} times, at last with: {death.reason}")
                        elif deaths[item] == ATTEMPTS - 1:
                            suspects.append(item)
                        else:
                            again.append(item)
                    continue
                lane.took(seconds / len(items))
                yield from zip(items, results, strict=True)
        finally:
            for reference in running:
                self.ray.cancel(reference, force=not isinstance(lane, ActorLane))

    def _wait(self, lane: Lane, running: dict[Any, list[Any]]) -> Any:
        """Return a reference that is done, or None after a while."""
        watched = [*running, *lane.starting()]
        if not watched:
            time.sleep(0.1)  # every worker has died; the lane starts others
            return None
        done, _ = self.ray.wait(watched, num_returns=1, timeout=LOOK_S, fetch_local=False)
        if done:
            self._said = time.monotonic()
            return done[0]
        if time.monotonic() - self._said > SAY_AFTER_S:
            self._said = time.monotonic()
            self.tell(lane.waits_for() or self._in_use())
        return None

    def _in_use(self) -> str:
        free, cluster = self.ray.available_resources(), self._cluster()
        return (
            f"no result for {SAY_AFTER_S:.0f} s: {free.get('CPU', 0):g} of {cluster.cpus:g} CPUs are free "
            f"(this run and others use the rest); {cluster.describe()}"
        )

    def _result(self, reference: Any) -> Any:
        """Return the results of items, and the seconds that they took.

        Raises:
            _ProcessDied: the process that did it has died.
            Exception: what the worker raised, as it was.
        """
        from ray import exceptions

        try:
            return self.ray.get(reference)
        except exceptions.RayTaskError as error:
            if isinstance(error.cause, Exception):
                raise error.cause from (None if isinstance(error.cause, UserError) else error)
            raise
        except exceptions.RayError as error:
            raise _ProcessDied(error) from error

    def close(self) -> None:
        """Leave the cluster; stop it if it was started here."""
        if self.owns_cluster:
            self.ray.shutdown()


class _ProcessDied(Exception):
    """The process of an item died, or its node did."""

    def __init__(self, error: BaseException):
        self.reason = first_line(error)
        kind, text = type(error).__name__, str(error).lower()
        lost = kind in ("NodeDiedError", "ObjectLostError", "OwnerDiedError") or (
            "node" in text and ("died" in text or "dead" in text or "terminated" in text) and "oom" not in text
        )
        # An OutOfMemoryError speaks of the node too, but it is the item that asks for more than there is.
        self.node_lost = lost and kind != "OutOfMemoryError"
