"""The local engine: the same stages in this process, for small jobs and debugging.

A few shards are prepared at once, each by a thread of its own: the tokenizer releases the interpreter, so reading the
source and the numpy work of one shard overlap the tokenizing of others. A model on a GPU has a few threads as well: one
shard is read and one is written while the GPU works on a third.
"""

import os
from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any

from annotate.run.engines.base import Engine, MakeWorker

MAX_THREADS = 8  # the interpreter's share of the work, about a fifth, keeps more of them waiting
GPU_THREADS = 5  # the model sees one shard at a time; the others are read and written meanwhile
PARALLELISM = "TOKENIZERS_PARALLELISM"


@contextmanager
def _one_thread_a_batch() -> Iterator[None]:
    """Let each call of a tokenizer use its caller's thread; a value that the user set stays.

    The threads of the stage and the tokenizer's own pool would otherwise compete for the same cores, which costs a
    tenth of the time on two.
    """
    if PARALLELISM in os.environ:
        yield
        return
    os.environ[PARALLELISM] = "false"
    try:
        yield
    finally:
        os.environ.pop(PARALLELISM, None)


class LocalEngine(Engine):
    """Runs everything in this process."""

    name = "local"

    @cached_property
    def device(self) -> str:
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    @property
    def description(self) -> str:
        return "local engine, this process"

    def map(
        self, make_worker: MakeWorker, items: Iterable[Hashable], uses_model: bool = False
    ) -> Iterator[tuple[Any, Any]]:
        # A model on a GPU scores beside this stage, and its own tokenizer needs more than one thread to keep it busy.
        # (Nobody asks for the device in a run without a model, and torch is not loaded for it.)
        has_gpu = self.__dict__.get("device") == "cuda"
        waiting = iter(items)
        first = next(waiting, None)
        if first is None:
            return
        worker = make_worker()
        if uses_model and not has_gpu:  # a model uses every core by itself
            yield first, worker.run(first)
            yield from ((item, worker.run(item)) for item in waiting)
            return
        threads = GPU_THREADS if uses_model else max(2, min(MAX_THREADS, os.cpu_count() or 1))
        with nullcontext() if has_gpu else _one_thread_a_batch(), ThreadPoolExecutor(threads) as pool:
            running: deque[tuple[Any, Future[Any]]] = deque([(first, pool.submit(worker.run, first))])
            try:
                for item in waiting:
                    running.append((item, pool.submit(worker.run, item)))
                    if len(running) > threads:
                        done, future = running.popleft()
                        yield done, future.result()
                while running:
                    done, future = running.popleft()
                    yield done, future.result()
            finally:
                for _, future in running:
                    future.cancel()
