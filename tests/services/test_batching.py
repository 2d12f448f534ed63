"""A worker by itself: what shares a batch, what is dropped, what is refused."""

import asyncio
import threading

import numpy as np
import pytest

from annotate.tokens.batch import Scores, TokenBatch
from services.batching import Worker
from services.errors import ApiError
from services.inputs import Document
from services.metrics import Metrics
from tests.services.probes import Probe


def document(text: str, num_tokens: int = 4) -> Document:
    return Document(
        TokenBatch(
            document_ids=[text],
            source_rows=np.array([0]),
            texts=[text],
            input_ids=np.arange(num_tokens, dtype=np.int32) + len(text),
            supervised=np.ones(num_tokens, dtype=bool),
            offsets=np.array([0, num_tokens]),
            spans=np.zeros((num_tokens, 2), dtype=np.int32),
        ),
        truncated=False,
    )


class Gate(Probe):
    """Waits in its first call after the probe until the test opens it."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.opened = threading.Event(), threading.Event()

    def score(self, batch: TokenBatch) -> Scores:
        if self.calls:
            self.entered.set()
            assert self.opened.wait(20)
        return super().score(batch)


def start(max_queue: int = 100, max_batch_tokens: int = 100, window_s: float = 0.0) -> tuple[Worker, Gate]:
    gate = Gate()
    worker = Worker("probe", gate, document("probe"), Metrics(), max_queue, max_batch_tokens, window_s)
    worker.start()
    while worker.state == "loading":
        pass
    return worker, gate


async def occupied(worker: Worker, gate: Gate) -> "asyncio.Future":
    """Let the thread hold one document, so that all further ones wait."""
    job = worker.submit([document("first")])
    await asyncio.to_thread(gate.entered.wait, 20)
    return job.future


def test_what_waits_is_scored_together_up_to_the_budget():
    async def scenario() -> tuple[list[int], list]:
        worker, gate = start(max_batch_tokens=12)
        first = await occupied(worker, gate)
        jobs = [worker.submit([document(f"text {i}"), document("x", 5)]) for i in range(3)]  # 4 and 5 tokens each
        gate.opened.set()
        results = await asyncio.gather(first, *(job.future for job in jobs))
        worker.stop()
        await asyncio.to_thread(worker.thread.join, 20)
        return gate.calls, results

    calls, results = asyncio.run(scenario())
    assert calls == [1, 1, 2, 2, 2]  # the probe, the first, and pairs: a third document would pass 12 tokens
    for result in results[1:]:
        np.testing.assert_array_equal(result[0].columns["probe"], (np.arange(4) + 6) % 7)
        np.testing.assert_array_equal(result[1].columns["probe"], (np.arange(5) + 1) % 7)


def test_a_budget_of_one_scores_one_at_a_time():
    async def scenario() -> list[int]:
        worker, gate = start(max_batch_tokens=1)
        gate.opened.set()
        await worker.submit([document(str(i)) for i in range(5)]).future
        return gate.calls

    assert asyncio.run(scenario()) == [1] * 6


def test_the_window_waits_for_company_and_no_longer():
    async def scenario() -> tuple[list[int], float]:
        worker, gate = start(window_s=0.5)
        gate.opened.set()
        loop = asyncio.get_running_loop()
        started = loop.time()
        one = worker.submit([document("a")])
        await asyncio.sleep(0.1)
        two = worker.submit([document("b")])
        await asyncio.gather(one.future, two.future)
        return gate.calls, loop.time() - started

    calls, seconds = asyncio.run(scenario())
    assert calls == [1, 2]
    assert 0.45 < seconds < 5


def test_a_full_batch_does_not_wait_for_the_window():
    async def scenario() -> tuple[list[int], float]:
        worker, gate = start(max_batch_tokens=12, window_s=30.0)
        gate.opened.set()
        started = asyncio.get_running_loop().time()
        one = worker.submit([document("a")])
        await asyncio.sleep(0.2)  # the window is open, with room for 8 tokens
        full = worker.submit([document("b"), document("c")])
        await asyncio.wait_for(asyncio.gather(one.future, full.future), 20)
        wide = worker.submit([document("d", 5)])
        await asyncio.sleep(0.2)
        worker.submit([document("e", 9)])  # does not fit: the batch before it is as full as it gets
        await asyncio.wait_for(wide.future, 20)
        return gate.calls, asyncio.get_running_loop().time() - started

    calls, seconds = asyncio.run(scenario())
    assert calls[:3] == [1, 3, 1]
    assert seconds < 15


def test_in_the_window_the_thread_sleeps():
    """Each waking takes the interpreter from the event loop, which has to wait to get it back."""

    async def scenario() -> tuple[list[int], list[float]]:
        worker, gate = start(window_s=0.6)
        gate.opened.set()
        woken, wait = [], worker._changed.wait

        def counted(timeout: float | None = None) -> bool:
            answer = wait(timeout)
            woken.append(timeout or 0.0)
            return answer

        worker._changed.wait = counted  # type: ignore[method-assign]
        await worker.submit([document("first")]).future
        woken.clear()
        jobs = []
        for number in range(10):
            jobs.append(worker.submit([document(str(number))]))
            await asyncio.sleep(0.02)
        await asyncio.gather(*(job.future for job in jobs))
        return gate.calls, woken

    calls, woken = asyncio.run(scenario())
    assert calls == [1, 1, 10]
    assert len(woken) <= 2  # by the first document, and by the end of the window


def test_the_queue_takes_a_request_whole_or_not_at_all():
    async def scenario() -> None:
        worker, gate = start(max_queue=3)
        first = await occupied(worker, gate)
        worker.submit([document("a"), document("b")])
        with pytest.raises(ApiError) as refused:
            worker.submit([document("c"), document("d")])
        assert refused.value.status == 429
        last = worker.submit([document("e")])
        gate.opened.set()
        await asyncio.gather(first, last.future)
        assert gate.texts == ["probe", "first", "a", "b", "e"]

    asyncio.run(scenario())


def test_an_abandoned_job_is_never_scored():
    async def scenario() -> list[str]:
        worker, gate = start(max_queue=3)
        first = await occupied(worker, gate)
        gone = worker.submit([document("gone"), document("gone too"), document("gone as well")])
        worker.abandon(gone)
        stays = worker.submit([document("a"), document("b"), document("c")])  # its places are free again
        gate.opened.set()
        await asyncio.gather(first, stays.future)
        return gate.texts

    assert asyncio.run(scenario()) == ["probe", "first", "a", "b", "c"]


def test_nothing_is_taken_before_it_is_ready_or_after_it_stopped():
    async def scenario() -> None:
        worker = Worker("probe", Probe(), document("probe"), Metrics(), 10, 10, 0.0)
        with pytest.raises(ApiError, match="is new"):
            worker.submit([document("a")])
        worker.start()
        while worker.state == "loading":
            await asyncio.sleep(0.01)
        job = worker.submit([document("a")])
        worker.stop()
        await job.future
        with pytest.raises(ApiError, match="is stopped"):
            worker.submit([document("b")])
        await asyncio.to_thread(worker.thread.join, 20)
        assert not worker.thread.is_alive()

    asyncio.run(scenario())
