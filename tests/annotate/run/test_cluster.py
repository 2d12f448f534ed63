"""A node of two is removed in the middle of a stage: every item is done on the node that is left, none set aside."""

import time
from dataclasses import dataclass

import pytest

from annotate.run.engines import make_engine
from annotate.run.engines.resources import Cluster, Node

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Slow:
    """A worker that takes its time."""

    def __call__(self):
        return self

    def run(self, item: int) -> int:
        time.sleep(0.4)
        return item * 10


@pytest.mark.parametrize("uses_model", [False, True])
def test_the_items_of_a_lost_node_are_done_elsewhere(uses_model):
    import ray
    from ray.cluster_utils import Cluster as TestCluster

    node = {"num_cpus": 1, "object_store_memory": 100 << 20}
    cluster = TestCluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    second = cluster.add_node(**node)
    said: list[str] = []
    try:
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        with make_engine("ray", None, None, 1.0) as engine:
            engine.tell = said.append
            results = {}
            for number, (item, result) in enumerate(engine.map(Slow(), range(20), uses_model=uses_model)):
                results[item] = result
                if number == 5:
                    cluster.remove_node(second, allow_graceful=False)
        assert results == {item: item * 10 for item in range(20)}
        assert said
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
