"""The Ray engine: the same shards as the local one, and what happens when a worker fails."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from rich.console import Console

from annotate.groupers import REGISTRY
from annotate.groupers.random import Random
from annotate.run.engines import make_engine
from annotate.run.engines.base import SetAside
from annotate.run.engines.lanes import TaskLane
from annotate.run.engines.ray import _ProcessDied
from annotate.run.pipeline import run
from annotate.run.settings import Settings
from annotate.tokens.batch import Scores
from common.errors import UserError
from common.files import sha256_file

pytestmark = pytest.mark.slow  # starting Ray takes seconds


@pytest.fixture(scope="module", autouse=True)
def ray_cluster():
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    yield
    ray.shutdown()


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_ray_and_local_give_the_same_bytes(tmp_path, workers):
    for engine in ("local", "ray"):
        settings = Settings(
            data="sample",
            groupers=("tfidf", "frequency", "random"),
            out=tmp_path / engine,
            engine=engine,
            workers=workers if engine == "ray" else None,
            rows_per_shard=40,
        )
        run(settings, Console(quiet=True))
    local, ray = ({p.name: sha256_file(p) for p in (tmp_path / e).glob("*.*")} for e in ("local", "ray"))
    assert len(local) > 5
    assert local.pop("manifest.json")
    assert ray.pop("manifest.json")
    assert ray == local


@dataclass(frozen=True)
class Fails:
    """A worker that fails in some way at item 3; `die` ends its process the first time only."""

    how: str
    marker: Path

    def __call__(self):
        return self

    def run(self, item: int) -> int:
        if item == 3:
            if self.how == "user":
                raise UserError("item 3 is wrong")
            if self.how == "bug":
                raise ZeroDivisionError("item 3")
            if self.how == "die" and not self.marker.exists():
                self.marker.touch()
                os._exit(1)
            if self.how == "always":
                os._exit(1)
        return item * 10


@pytest.mark.parametrize("uses_model", [False, True])
def test_a_worker_that_dies_is_replaced_and_its_item_done(tmp_path, uses_model):
    with make_engine("ray", None, 2, 1.0) as engine:
        results = sorted(engine.map(Fails("die", tmp_path / "died"), range(8), uses_model=uses_model))
    assert results == [(item, item * 10) for item in range(8)]
    assert (tmp_path / "died").exists()


@pytest.mark.parametrize("uses_model", [False, True])
def test_an_item_that_kills_its_worker_each_time_is_set_aside_and_the_others_are_done(tmp_path, uses_model):
    with make_engine("ray", None, 2, 1.0) as engine:
        results = dict(engine.map(Fails("always", tmp_path), range(8), uses_model=uses_model))
    assert isinstance(aside := results.pop(3), SetAside)
    assert aside.reason.startswith("its worker died 3 times, at last with:")
    assert results == {item: item * 10 for item in (0, 1, 2, 4, 5, 6, 7)}


class Mortal(Random):
    """`random`, whose process is killed, as the kernel kills where memory ends, by the first ten shards it meets."""

    name = "mortal"
    graves: ClassVar[Path]  # a file for each shard that has killed

    def __init__(self, graves: Path):
        super().__init__(0)
        self.own_graves = graves

    @classmethod
    def from_options(cls, options):
        return cls(cls.graves)

    @property
    def columns(self):
        return {"mortal": "importance"}

    def score(self, batch):
        grave = self.own_graves / str(int(batch.source_rows[0]))
        if not grave.exists() and len(list(self.own_graves.iterdir())) < 10:
            grave.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return Scores({"mortal": super().score(batch).columns["mortal"]})


def test_a_run_whose_workers_are_killed_ten_times_gives_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setitem(REGISTRY, "mortal", f"{__name__}:Mortal")
    for engine in ("ray", "local"):
        Mortal.graves = tmp_path / "graves"
        Mortal.graves.mkdir(exist_ok=True)
        settings = Settings("sample", ("tfidf", "mortal"), tmp_path / engine, engine=engine, rows_per_shard=20)
        run(settings, Console(quiet=True))
        assert len(list(Mortal.graves.iterdir())) == 10
    local, ray = ({p.name: sha256_file(p) for p in (tmp_path / e).glob("*.*")} for e in ("local", "ray"))
    assert len(local) > 15
    assert ray == local


def test_an_item_for_which_memory_ended_is_tried_as_one_whose_worker_died():
    from ray.exceptions import NodeDiedError, OutOfMemoryError

    low = "Task was killed due to the node running low on memory. Ray terminated this worker; the node is not dead."
    assert not _ProcessDied(OutOfMemoryError(low)).node_lost
    assert _ProcessDied(NodeDiedError("The node has died.")).node_lost


def test_errors_arrive_as_they_were(tmp_path):
    with make_engine("ray", None, 2, 1.0) as engine:
        with pytest.raises(UserError, match=r"^item 3 is wrong$"):
            list(engine.map(Fails("user", tmp_path), range(8)))
        with pytest.raises(ZeroDivisionError, match="item 3"):
            list(engine.map(Fails("bug", tmp_path), range(8)))


@dataclass(frozen=True)
class Broken:
    """A worker that cannot be built."""

    def __call__(self):
        raise UserError("the model does not load")


@pytest.mark.parametrize("uses_model", [False, True])
def test_an_error_while_a_worker_is_built_arrives_too(uses_model):
    with make_engine("ray", None, 1, 1.0) as engine, pytest.raises(UserError, match=r"^the model does not load"):
        list(engine.map(Broken(), range(2), uses_model=uses_model))


@dataclass(frozen=True)
class Lasts:
    """A worker that takes its time."""

    seconds: float

    def __call__(self):
        return self

    def run(self, item: int) -> int:
        time.sleep(self.seconds)
        return item * 10


def test_items_are_read_only_a_few_ahead():
    read = []

    def items():
        for item in range(50):
            read.append(item)
            yield item

    with make_engine("ray", None, 2, 1.0) as engine:
        for done, _ in enumerate(engine.map(Lasts(0.3), items()), start=1):
            assert len(read) <= done + 5
            if done == 12:
                break


def test_a_task_takes_several_short_items_and_one_that_kills_takes_none_with_it(tmp_path, monkeypatch):
    sizes, submit = [], TaskLane.submit
    monkeypatch.setattr(TaskLane, "submit", lambda self, items: (sizes.append(len(items)), submit(self, items))[1])
    monkeypatch.setattr(TaskLane, "at_once", 4)
    with make_engine("ray", None, 2, 1.0) as engine:
        results = dict(engine.map(Fails("always", tmp_path), range(40)))
    assert isinstance(results.pop(3), SetAside)
    assert results == {item: item * 10 for item in range(40) if item != 3}
    assert max(sizes) > 1
    assert len(sizes) < 30


def test_wrong_settings():
    with pytest.raises(UserError, match="--workers 0"):
        make_engine("ray", None, 0, 1.0)
    with pytest.raises(UserError, match="--gpus-per-worker 0"):
        make_engine("ray", None, 1, 0.0)
    with pytest.raises(UserError, match="--gpus-per-worker 2: expected at most 1"):
        make_engine("ray", None, 1, 2.0)
