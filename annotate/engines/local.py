"""The local engine: the same stages in this process, for small jobs and debugging.

One shard is prepared ahead: reading the source and the numpy work of one shard overlap the tokenizer of the next, which
releases the interpreter.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from annotate.engines.base import Engine, MakeWorker


class LocalEngine(Engine):
    """Runs everything in this process."""

    name = "local"

    @property
    def device(self) -> str:
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    @property
    def description(self) -> str:
        return "local engine, this process"

    def map(self, make_worker: MakeWorker, items: Iterable[Any], uses_model: bool = False) -> Iterator[Any]:
        worker = make_worker()
        if uses_model:  # a model uses every core by itself
            yield from map(worker, items)
            return
        with ThreadPoolExecutor(max_workers=2) as pool:
            running: deque[Future[Any]] = deque()
            try:
                for item in items:
                    running.append(pool.submit(worker, item))
                    if len(running) > 2:
                        yield running.popleft().result()
                while running:
                    yield running.popleft().result()
            finally:
                for future in running:
                    future.cancel()
