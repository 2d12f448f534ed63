"""What an engine is: something that applies a stage to many small items, each of which says where its data lie."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, Self

from common.errors import UserError


class Worker(Protocol):
    """What a stage builds in each process."""

    def run(self, item: Any) -> Any:
        """Do one item. Doing it twice must be harmless."""


MakeWorker = Callable[[], Worker]  # picklable; called once in each process that works on the stage
Tell = Callable[[str], None]  # takes a sentence for the user, such as what is waited for


@dataclass(frozen=True)
class SetAside:
    """An item that was given up: the process that worked on it died each time."""

    reason: str


class Engine(ABC):
    """Runs the stages of annotation. Results do not depend on the engine, only the speed does."""

    name: str
    tell: Tell = staticmethod(lambda sentence: None)

    @property
    @abstractmethod
    def device(self) -> str:
        """Where a stage that runs a model runs it: "cuda" or "cpu"."""

    @property
    @abstractmethod
    def description(self) -> str:
        """One line for the user, such as "Ray, 2 workers"."""

    @abstractmethod
    def map(
        self, make_worker: MakeWorker, items: Iterable[Hashable], uses_model: bool = False
    ) -> Iterator[tuple[Any, Any]]:
        """Yield (item, result) for every item, in the order in which they are done.

        `items` is read lazily, only a few ahead of the workers. The result is a `SetAside` for an item that cannot be
        done. What a worker raises is raised here as it was.
        """

    def check(self, uses_model: bool) -> None:  # noqa: B027
        """Raise a `UserError` at once for what can never be placed, saying what there is."""

    def close(self) -> None:  # noqa: B027 (most engines hold nothing)
        """Release what the engine holds; no process is left."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def outcomes(engine: Engine, make_worker: MakeWorker, items: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """Yield what `engine.map` yields, for stages that need every item.

    Raises:
        UserError: an item was given up.
    """
    for item, result in engine.map(make_worker, items):
        if isinstance(result, SetAside):
            raise UserError(f"{type(make_worker).__name__} of {item}: {result.reason}")
        yield item, result
