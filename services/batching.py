"""One thread owns each grouper, and scores what is waiting together.

What enters: the documents of requests, as `Job`s, from the event loop. What leaves: each job's scores, set on its
future in that loop. Documents of any requests share a batch, up to a token budget; when there are fewer, the thread
waits a short window for more. A job whose client has gone is dropped before it is scored.

Scores do not depend on the company (a property of every grouper), so a batch changes speed and nothing else.
"""

import asyncio
import gc
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Literal

from annotate.groupers.base import Grouper
from services.errors import ApiError
from services.inputs import Document, join
from services.jobs import Item, Job, deliver, split
from services.logs import failure, log
from services.metrics import Metrics

State = Literal["new", "loading", "ready", "stopped", "failed"]


class Worker:
    """A grouper with its thread and its queue.

    Attributes:
        state: "ready" once a real document was scored; "failed" for good when the thread ends in any other way than
            `stop`, or when the grouper cannot even score the probe any more.
        reason: why it failed.
    """

    def __init__(
        self,
        name: str,
        grouper: Grouper,
        probe: Document,
        metrics: Metrics,
        max_queue: int,
        max_batch_tokens: int,
        batch_window_s: float,
    ):
        self.name = name
        self.grouper = grouper
        self.probe = probe
        self.metrics = metrics
        self.max_queue = max_queue
        self.max_batch_tokens = max_batch_tokens
        self.batch_window_s = batch_window_s
        self.state: State = "new"
        self.reason = ""
        self._waiting: deque[Item] = deque()
        self._waiting_tokens = 0
        self._room = 0  # tokens that wake the thread: what its batch still takes; 0 where it has nothing to do
        self._changed = threading.Condition()
        self.thread = threading.Thread(target=self._run, name=f"grouper-{name}", daemon=True)
        metrics.watch(name, lambda: len(self._waiting), lambda: float(self.state == "ready"))

    # Called in the event loop:

    def start(self) -> None:
        """Load the grouper and begin to score, in the thread."""
        self.state = "loading"
        self.thread.start()

    def submit(self, documents: Sequence[Document]) -> Job:
        """Queue the documents of a request: all of them, or none.

        Raises:
            ApiError: `not_ready`, or `overloaded` when the queue cannot take them.
        """
        loop = asyncio.get_running_loop()
        job = Job(documents, loop, loop.create_future())
        with self._changed:
            self._require_ready()
            if len(self._waiting) + len(documents) > self.max_queue:
                raise ApiError(
                    "overloaded",
                    f"the queue of {self.name} is full ({len(self._waiting)} of {self.max_queue} inputs wait). "
                    "Try again later.",
                    {"Retry-After": "1"},
                )
            self._waiting.extend(Item(job, number) for number in range(len(documents)))
            self._waiting_tokens += sum(document.num_tokens for document in documents)
            # A thread that waits for company is not woken for each document: the event loop would give the interpreter
            # up to it, and wait to have it back, as often.
            if self._waiting_tokens >= self._room:
                self._changed.notify()
        return job

    def abandon(self, job: Job) -> None:
        """Forget a job: what was not scored yet will not be."""
        with self._changed:
            job.abandoned = True
            kept = [item for item in self._waiting if item.job is not job]
            self.metrics.abandoned.labels(self.name).inc(len(self._waiting) - len(kept))
            self._waiting = deque(kept)
            self._waiting_tokens = sum(item.document.num_tokens for item in kept)

    def stop(self) -> None:
        """End the thread after what is queued."""
        with self._changed:
            if self.state not in ("failed", "new"):
                self.state = "stopped"
            self._changed.notify()

    def _require_ready(self) -> None:
        if self.state == "failed":
            raise self._failed()
        if self.state != "ready":
            raise ApiError("not_ready", f"the grouper {self.name} is {self.state}.", {"Retry-After": "1"})

    def _failed(self) -> ApiError:
        return ApiError("not_ready", f"the grouper {self.name} has failed ({self.reason}). The server log says more.")

    # Called in the thread:

    def _run(self) -> None:
        taken: list[Item] = []
        try:
            started = time.monotonic()
            self.grouper.score(join([self.probe]))
            # What was loaded stays. Walking through it again and again, the garbage collector would stop everything for
            # some 0.3 s each time.
            gc.collect()
            gc.freeze()
            with self._changed:
                self.state = "ready" if self.state == "loading" else self.state
            log("grouper_ready", grouper=self.name, seconds=round(time.monotonic() - started, 3))
            while taken := self._take():
                self._score(taken)
        except BaseException as error:  # whatever ends this thread, those who wait must hear of it
            self._fail(error, taken)

    def _take(self) -> list[Item]:
        """Wait for documents and return a batch of them; an empty one when the worker was stopped."""
        with self._changed:
            while not self._waiting:
                if self.state == "stopped":
                    return []
                self._room = 0
                self._changed.wait()
            items = [self._pop()]
            tokens = items[0].document.num_tokens
            until = time.monotonic() + self.batch_window_s
            while tokens < self.max_batch_tokens:
                if self._waiting:
                    if tokens + self._waiting[0].document.num_tokens > self.max_batch_tokens:
                        break
                    items.append(self._pop())
                    tokens += items[-1].document.num_tokens
                    continue
                left = until - time.monotonic()
                if left <= 0 or self.state == "stopped":
                    break
                self._room = self.max_batch_tokens - tokens
                self._changed.wait(left)
            return items

    def _pop(self) -> Item:
        item = self._waiting.popleft()
        self._waiting_tokens -= item.document.num_tokens
        return item

    def _score(self, items: list[Item]) -> None:
        """Score a batch; when it cannot be scored as a whole, one document at a time."""
        wanted = [item for item in items if not item.job.abandoned and item.job.error is None]
        self.metrics.abandoned.labels(self.name).inc(len(items) - len(wanted))
        items = wanted
        try:
            self._score_together(items)
        except Exception as error:
            log("batch_failed", 30, grouper=self.name, inputs=len(items), **failure(error))
            for item in items:
                try:
                    self._score_together([item])
                except Exception as single:
                    item.job.error = single
            # Is it the documents or the grouper? If even the probe fails now, this raises and the worker has failed.
            self.grouper.score(join([self.probe]))
        deliver({item.job: None for item in items})

    def _score_together(self, items: list[Item]) -> None:
        if not items:
            return
        started = time.monotonic()
        batch = join([item.document for item in items])
        for item, scored in zip(items, split(self.grouper.score(batch), batch), strict=True):
            item.job.results[item.number] = scored
        self.metrics.batch(self.name, len(items), batch.num_tokens, time.monotonic() - started)

    def _fail(self, error: BaseException, taken: list[Item]) -> None:
        """Mark the worker as failed, and fail everything that waits for it."""
        with self._changed:
            self.state = "failed"
            self.reason = f"{type(error).__name__}: {failure(error)['reason']}".rstrip(": ")
            items = [*taken, *self._waiting]
            self._waiting.clear()
        log("grouper_failed", 40, grouper=self.name, waiting=len(items), **failure(error))
        jobs = {item.job: None for item in items if len(item.job.results) < len(item.job.documents)}
        for job in jobs:
            job.error = self._failed()
        deliver({item.job: None for item in items})
