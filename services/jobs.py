"""What waits for a grouper, and what comes back.

What enters: the documents of a request, from the event loop. What leaves: their scores, on a future of that loop. Next:
`services.batching` makes batches of the items.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from annotate.tokens.batch import Scores, TokenBatch
from services.inputs import Document


@dataclass(frozen=True)
class Scored:
    """What a grouper says of one document."""

    columns: dict[str, np.ndarray]  # float32 [num_tokens] each
    num_chunks: int
    reject: str | None = None  # why the document has no score


@dataclass(eq=False)
class Job:
    """The documents of one request."""

    documents: Sequence[Document]
    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[list[Scored]]"
    results: dict[int, Scored] = field(default_factory=dict)  # by the document's number; filled by the thread
    error: BaseException | None = None
    abandoned: bool = False  # set by the event loop, read by the thread


@dataclass(frozen=True, eq=False)
class Item:
    """One document that waits."""

    job: Job
    number: int

    @property
    def document(self) -> Document:
        """The document."""
        return self.job.documents[self.number]


def deliver(jobs: Iterable[Job]) -> None:
    """Set the futures of the jobs that are done, from another thread; one call for all wakes their event loop once."""
    loops: dict[asyncio.AbstractEventLoop, list[Callable[[], None]]] = {}
    for job in jobs:
        if job.error is not None or len(job.results) == len(job.documents):
            loops.setdefault(job.loop, []).append(_setter(job))
    for loop, setters in loops.items():
        if not loop.is_closed():
            loop.call_soon_threadsafe(_call_all, setters)


def _setter(job: Job) -> Callable[[], None]:
    def set_result() -> None:
        if job.future.done():
            return
        if job.error is not None:
            job.future.set_exception(job.error)
        else:
            job.future.set_result([job.results[number] for number in range(len(job.documents))])

    return set_result


def _call_all(setters: list[Callable[[], None]]) -> None:
    for setter in setters:
        setter()


def split(scores: Scores, batch: TokenBatch) -> list[Scored]:
    """Return what `scores` says of each document of the batch."""
    results = []
    for number in range(len(batch)):
        here = batch.tokens_of(number)
        columns = {name: values[here] for name, values in scores.columns.items()}
        chunks = 1 if scores.num_chunks is None else int(scores.num_chunks[number])
        results.append(Scored(columns, chunks, scores.rejects.get(number)))
    return results
