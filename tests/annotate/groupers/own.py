"""A grouper that a user adds: one file, its flags included, and one registry line."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from annotate.groupers.base import Flags, Grouper, GrouperOptions
from annotate.tokens.batch import Scores, TokenBatch

LINE = ("own", "tests.annotate.groupers.own:Own")


@dataclass(frozen=True)
class OwnFlags(Flags):
    own_power: float | None = field(default=None, metadata={"help": "The power of a token's place. Default: 1."})
    own_back: bool | None = field(default=None, metadata={"help": "Count places from the end."})

    def problems(self) -> list[str]:
        if self.own_power is not None and self.own_power < 0:
            return [f"--own-power: expected at least 0, found {self.own_power}."]
        return []


class Own(Grouper):
    """A token's place in its document, raised to a power."""

    name = "own"
    Flags = OwnFlags

    def __init__(self, power: float, back: bool):
        self.power, self.back = power, back

    @classmethod
    def from_options(cls, options: GrouperOptions) -> "Own":
        flags = options.read(OwnFlags)
        return cls(1.0 if flags.own_power is None else flags.own_power, bool(flags.own_back))

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any], options: GrouperOptions) -> "Own":
        return cls(parameters["own_power"], parameters["own_back"])

    @property
    def parameters(self) -> dict[str, Any]:
        return {"own_power": self.power, "own_back": self.back}

    def score(self, batch: TokenBatch) -> Scores:
        place = np.arange(batch.num_tokens) - np.repeat(batch.offsets[:-1], batch.lengths)
        if self.back:
            place = np.repeat(batch.lengths, batch.lengths) - 1 - place
        return Scores({"own": (place**self.power).astype(np.float32)})
