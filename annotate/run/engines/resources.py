"""What a Ray cluster has at this moment, and what that means for the workers of a run.

What enters: Ray's list of nodes. What leaves: how many workers there can be, what each is given, and sentences that say
what the nodes have. Nodes come and go, so this is asked again and again.
"""

from dataclasses import dataclass

from common.errors import UserError


@dataclass(frozen=True)
class Node:
    """One living node."""

    name: str
    cpus: float
    gpus: float


@dataclass(frozen=True)
class Cluster:
    """The living nodes."""

    nodes: tuple[Node, ...]

    @classmethod
    def now(cls, ray: object) -> "Cluster":
        """Ask Ray."""
        found = []
        for node in ray.nodes():  # type: ignore[attr-defined]
            if node["Alive"]:
                has = node["Resources"]
                found.append(Node(node["NodeManagerAddress"], has.get("CPU", 0.0), has.get("GPU", 0.0)))
        return cls(tuple(sorted(found, key=lambda node: node.name)))

    @property
    def cpus(self) -> float:
        """CPUs of all nodes."""
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> float:
        """GPUs of all nodes."""
        return sum(node.gpus for node in self.nodes)

    def describe(self) -> str:
        """Say what the nodes have."""
        each = ", ".join(f"{node.name}: {node.cpus:g} CPUs and {node.gpus:g} GPUs" for node in self.nodes[:8])
        more = f", and {len(self.nodes) - 8} more" if len(self.nodes) > 8 else ""
        return f"the cluster has {len(self.nodes)} node{'' if len(self.nodes) == 1 else 's'} ({each}{more})"

    def cpus_each(self, workers: int | None) -> float:
        """Return the CPUs that a worker is given, so that so many (by default one a CPU) fit at once.

        A whole number where there are enough: the largest that every worker still finds on some node.
        """
        if workers is None or self.cpus <= 0:
            return 1.0
        if workers >= self.cpus:
            return max(0.001, int(1000 * self.cpus / workers) / 1000)
        most = int(max(node.cpus for node in self.nodes))
        return float(next((n for n in range(most, 1, -1) if sum(node.cpus // n for node in self.nodes) >= workers), 1))

    def gpu_workers(self, share: float) -> int:
        """Return how many workers with this share of a GPU fit: a share never spans two GPUs."""
        return sum(int(node.gpus) * int(1 / share + 1e-9) for node in self.nodes)


def check_gpu_share(share: float) -> None:
    """Raise a `UserError` for a share of GPUs that no worker can have."""
    if not share > 0:
        raise UserError(f"--gpus-per-worker {share}: expected more than 0, for example 0.5 or 1.")
    if share > 1:
        raise UserError(
            f"--gpus-per-worker {share:g}: expected at most 1: a worker's model runs on one GPU, and is not spread "
            "over several. Take a smaller --dtype or --batch-tokens if it does not fit."
        )
