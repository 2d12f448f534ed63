"""The registry of engines: who runs the stages."""

from annotate.run.engines.base import Engine
from annotate.run.engines.resources import check_gpu_share
from common.errors import UserError


def make_engine(name: str, address: str | None, workers: int | None, gpus_per_worker: float) -> Engine:
    """Return the engine of this name; Ray is imported and started only when it is asked for.

    Raises:
        UserError: unknown name, or settings that the engine does not have.
    """
    if workers is not None and workers < 1:
        raise UserError(f"--workers {workers}: expected at least 1.")
    check_gpu_share(gpus_per_worker)
    if name == "local":
        if address is not None:
            raise UserError("--address names a Ray cluster; it goes with --engine ray, not with --engine local.")
        if workers is not None:
            raise UserError("--workers counts Ray workers; --engine local runs in this process. Drop one of the two.")
        from annotate.run.engines.local import LocalEngine

        return LocalEngine()
    if name == "ray":
        from annotate.run.engines.ray import RayEngine

        return RayEngine(address, workers, gpus_per_worker)
    raise UserError(f"--engine {name}: expected ray or local.")
