"""A node of two is removed in the middle of a stage: every item is done on the node that is left, none set aside."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from annotate.run.engines import make_engine
from annotate.run.engines.resources import Cluster, Node

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Waiting:
    """A worker that never ends on one node, and elsewhere waits until that one is at work."""

    doomed: str  # the node's id
    at_work: Path

    def __call__(self):
        return self

    def run(self, item: int) -> int:
        import ray

        if ray.get_runtime_context().get_node_id() == self.doomed:
            self.at_work.touch()
            time.sleep(300)
        wait_for(self.at_work)
        time.sleep(0.1)
        return item * 10


def wait_for(path: Path, seconds: float = 100.0):
    until = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert path.exists(), "the second node was never given an item"


@pytest.mark.parametrize("uses_model", [False, True])
def test_the_items_of_a_lost_node_are_done_elsewhere(uses_model, tmp_path):
    import ray
    from ray.cluster_utils import Cluster as TestCluster

    node = {"num_cpus": 1, "object_store_memory": 100 << 20}
    cluster = TestCluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    second = cluster.add_node(**node)
    said: list[str] = []
    worker = Waiting(second.node_id, tmp_path / "at work")

    def lose_it() -> None:
        wait_for(worker.at_work)
        cluster.remove_node(second, allow_graceful=False)

    try:
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        with make_engine("ray", None, None, 1.0) as engine, ThreadPoolExecutor(1) as beside:
            engine.tell = said.append
            lost = beside.submit(lose_it)
            results = dict(engine.map(worker, range(20), uses_model=uses_model))
            lost.result()
        assert results == {item: item * 10 for item in range(20)}
        # Of an actor, Ray says first that it cannot be reached, whatever it died of.
        expected = ("a node was lost", "a worker died") if uses_model else ("a node was lost",)
        assert any(line.startswith(expected) for line in said), said
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.parametrize(
    ("cpus", "workers", "each"),
    [([2], None, 1), ([2], 1, 2), ([2], 2, 1), ([2], 3, 0.666), ([4, 4], 1, 4), ([4, 2], 2, 2), ([1, 1, 1], 2, 1)],
)
def test_every_worker_finds_the_cpus_that_it_is_given_on_some_node(cpus, workers, each):
    cluster = Cluster(tuple(Node(f"n{i}", count, 0) for i, count in enumerate(cpus)))
    assert cluster.cpus_each(workers) == each


def test_a_share_of_a_gpu_never_spans_two():
    cluster = Cluster((Node("a", 8, 2), Node("b", 8, 1)))
    assert cluster.gpu_workers(0.4) == 6
    assert cluster.gpu_workers(1.0) == 3
    assert cluster.gpu_workers(1 / 3) == 9
    assert cluster.describe() == "the cluster has 2 nodes (a: 8 CPUs and 2 GPUs, b: 8 CPUs and 1 GPUs)"
