"""The local engine by itself: order, one thread a tokenizer's batch, and errors."""

import os
from dataclasses import dataclass
from typing import Any

import pytest

from annotate.run.engines.local import PARALLELISM, LocalEngine
from common.errors import UserError


@dataclass
class Does:
    """A worker that calls a function."""

    run: Any

    def __call__(self):
        return self


def setting_seen(engine: LocalEngine) -> set[str | None]:
    """Return what the workers of a stage without a model see of the tokenizers' setting."""
    return {seen for _, seen in engine.map(Does(lambda item: os.environ.get(PARALLELISM)), range(20))}


def test_results_come_in_order_and_the_source_is_read_a_few_ahead():
    read = []
    items = (read.append(i) or i for i in range(1000))
    results = LocalEngine().map(Does(lambda item: item * item), items)
    assert next(results) == (0, 0)
    assert len(read) < 20
    assert list(results) == [(i, i * i) for i in range(1, 1000)]


def test_a_stage_without_items_builds_no_worker():
    assert list(LocalEngine().map(lambda: 1 / 0, [])) == []


def test_on_a_gpu_a_shard_is_read_and_one_written_while_the_model_works():
    import threading

    engine, together = LocalEngine(), threading.Barrier(3, timeout=20)
    engine.__dict__["device"] = "cuda"
    assert len(list(engine.map(Does(lambda item: together.wait()), range(3), uses_model=True))) == 3


@pytest.mark.parametrize("before", [None, "true"])
def test_a_batch_is_tokenized_by_one_thread_unless_the_user_says_otherwise(monkeypatch, before):
    monkeypatch.delenv(PARALLELISM, raising=False)
    if before is not None:
        monkeypatch.setenv(PARALLELISM, before)
    assert setting_seen(LocalEngine()) == {before or "false"}
    assert os.environ.get(PARALLELISM) == before


def test_beside_a_gpu_the_tokenizers_keep_their_threads(monkeypatch):
    monkeypatch.delenv(PARALLELISM, raising=False)
    engine = LocalEngine()
    engine.__dict__["device"] = "cuda"
    assert setting_seen(engine) == {None}


def test_an_error_arrives_as_it_was_and_the_setting_goes_back(monkeypatch):
    monkeypatch.delenv(PARALLELISM, raising=False)

    def fail(item: int) -> int:
        if item == 3:
            raise UserError("three")
        return item

    with pytest.raises(UserError, match=r"^three$"):
        list(LocalEngine().map(Does(fail), range(10)))
    assert PARALLELISM not in os.environ
