"""The Ray engine: a pool of actors for each stage, on a local Ray that starts by itself or on a running cluster.

One unit of work is one shard. Each actor builds its worker once (tokenizer, fitted state, model) and has at most two
shards in flight, so neither the object store nor the driver holds more than a few shards. The driver reads the source
itself and reserves no CPU, so actors cannot starve the reading.
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from annotate.run.engines.base import Engine, MakeWorker
from common.errors import UserError

SHARDS_IN_FLIGHT = 2  # per actor: one at work, one waiting


class _Actor:
    """A worker process."""

    def __init__(self, make_worker: MakeWorker, num_threads: int):
        # Read by the tokenizer's thread pool when it starts; several workers of all threads would slow each other down.
        os.environ["RAYON_NUM_THREADS"] = str(num_threads)
        self.worker = make_worker()

    def run(self, item: Any) -> Any:
        return self.worker(item)


class RayEngine(Engine):
    """Runs the stages on Ray.

    Args:
        address: an existing cluster ("auto", "ray://host:port", "host:port"); None starts a local Ray.
        workers: number of actors in each CPU stage; by default one a CPU.
        gpus_per_worker: share of a GPU that an actor with a model takes.
    """

    name = "ray"

    def __init__(self, address: str | None, workers: int | None, gpus_per_worker: float):
        # No usage reports; and a worker whose parent died ends.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        self.ray = ray
        self.gpus_per_worker = gpus_per_worker
        self.owns_cluster = not ray.is_initialized()
        if self.owns_cluster:
            self._start(address)
        resources = ray.cluster_resources()
        self.num_cpus = max(1, int(resources.get("CPU", 1)))
        self.num_gpus = int(resources.get("GPU", 0))
        self.workers = workers or self.num_cpus
        self.where = "the Ray cluster" if address else "a local Ray"

    def _start(self, address: str | None) -> None:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if address is None:
            options |= {"address": "local", "include_dashboard": False, "object_store_memory": 1 << 30}
        else:
            options["address"] = address
        try:
            self.ray.init(**options)
        except Exception as error:
            where = f"the cluster at --address {address}" if address else "a local Ray"
            raise UserError(
                f"{where} could not be reached or started ({type(error).__name__}: {str(error).splitlines()[0]}). "
                "Check the address (`ray status`); a cluster with token authentication (what `ray start` sets up by "
                "default since Ray 2.60) needs RAY_AUTH_MODE=token here and its token in ~/.ray/auth_token or "
                "RAY_AUTH_TOKEN. Or use --engine local."
            ) from error

    @property
    def device(self) -> str:
        return "cuda" if self.num_gpus else "cpu"

    @property
    def description(self) -> str:
        gpus = f", {self.num_gpus} GPUs" if self.num_gpus else ""
        return f"{self.where}, {self.workers} workers, {self.num_cpus} CPUs{gpus}"

    def map(self, make_worker: MakeWorker, items: Iterable[Any], uses_model: bool = False) -> Iterator[Any]:
        # pull items only when a slot is free
        actors = self._actors(make_worker, uses_model)
        slots = deque(actor for _ in range(SHARDS_IN_FLIGHT) for actor in actors)
        running: dict[Any, Any] = {}
        waiting = iter(items)
        try:
            while True:
                while slots:
                    item = next(waiting, None)
                    if item is None:
                        slots.clear()
                        waiting = iter(())
                        break
                    actor = slots.popleft()
                    running[actor.run.remote(item)] = actor
                if not running:
                    return
                done, _ = self.ray.wait(list(running), num_returns=1)
                slots.append(running.pop(done[0]))
                yield self._result(done[0])
        finally:
            for actor in actors:
                self.ray.kill(actor)

    def _actors(self, make_worker: MakeWorker, uses_model: bool) -> list[Any]:
        """Start the actors of a stage. A shard whose actor dies is tried again twice, on a new process."""
        options: dict[str, Any] = {"max_restarts": 2, "max_task_retries": 2}
        if uses_model and self.num_gpus:
            count = max(1, int(self.num_gpus / self.gpus_per_worker + 1e-9))
            # no CPU: the CPU stages that feed the models run beside them
            options |= {"num_gpus": self.gpus_per_worker, "num_cpus": 0}
            threads = min(4, max(1, self.num_cpus // count))  # one tokenizer thread may not keep up with a GPU
        else:
            count = self.workers
            threads = max(1, self.num_cpus // count)
            # more workers than CPUs share them
            options["num_cpus"] = threads if count <= self.num_cpus else self.num_cpus / count
        remote = self.ray.remote(_Actor).options(**options)
        return [remote.remote(make_worker, threads) for _ in range(count)]

    def _result(self, reference: Any) -> Any:
        from ray.exceptions import RayActorError, RayTaskError

        try:
            return self.ray.get(reference)
        except RayTaskError as error:
            if isinstance(error.cause, Exception):
                raise error.cause from (None if isinstance(error.cause, UserError) else error)
            raise
        except RayActorError as error:
            # An error in a worker's constructor (a model that does not load, say) also arrives this way.
            cause = getattr(error, "cause", None)
            if isinstance(cause, UserError):
                raise cause from None
            if "UserError" in str(error):
                raise UserError(str(error).split("UserError:")[-1].strip()) from None
            raise UserError(
                f"a worker died more than twice over one shard ({str(error).splitlines()[0]}). If it ran out of "
                "memory, use fewer --workers or smaller --batch-tokens or --rows-per-shard. Finished shards are kept: "
                "run the same command again to go on."
            ) from error

    def close(self) -> None:
        """Leave the cluster; stop it if it was started here."""
        if self.owns_cluster:
            self.ray.shutdown()
