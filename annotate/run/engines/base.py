"""What an engine is: something that applies a stage to many shards."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

Worker = Callable[[Any], Any]
MakeWorker = Callable[[], Worker]  # picklable; builds a worker in the process that runs it


class Engine(ABC):
    """Runs the stages of annotation. Results do not depend on the engine, only the speed does."""

    name: str

    @property
    @abstractmethod
    def device(self) -> str:
        """Where a stage that runs a model runs it: "cuda" or "cpu"."""

    @property
    @abstractmethod
    def description(self) -> str:
        """One line for the user, such as "Ray, 2 workers"."""

    @abstractmethod
    def map(self, make_worker: MakeWorker, items: Iterable[Any], uses_model: bool = False) -> Iterator[Any]:
        """Yield `worker(item)` for every item, in the order in which they are done.

        `items` is read lazily, only a few ahead of the workers. A worker's `UserError` is raised here as it was.
        """

    def close(self) -> None:  # noqa: B027 (most engines hold nothing)
        """Release what the engine holds."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
