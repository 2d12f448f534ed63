"""What every objective is: one class, one registry line in `__init__.py`.

The maximum of eq. 4 is not additive, so a step that is split over micro-batches and ranks cannot take it part by part.
Each objective is therefore written twice. `value` is the paper's equation over sums of the whole step. `loss` is one
micro-batch's share of a function that is linear in the token losses once the worst group is known, and the shares of
all micro-batches and ranks add up to `value`, and their gradients to its gradient. The contract tests hold every
registered objective to this.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from train.objectives.tokens import Counts, Sums, Tokens
from train.settings.flags import ObjectiveSettings


@dataclass(frozen=True)
class Objective(ABC):
    """What is minimised."""

    settings: ObjectiveSettings

    name: ClassVar[str]
    needs_groups: ClassVar[bool] = True
    needs_document_sums: ClassVar[bool] = False  # whether `value` reads `Sums.worst_of_documents`

    def needs_worst_group(self, weight: float) -> bool:
        """Return whether `loss` takes the whole step's worst group, with `weight` the lambda of the step."""
        return False

    def is_plain_mean(self, weight: float) -> bool:
        """Return whether the objective is the mean over all supervised tokens at this lambda: the base class's own."""
        return False

    @abstractmethod
    def loss(self, tokens: Tokens, counts: Counts, weight: float, worst: Tensor | int | None) -> Tensor:
        """Return one micro-batch's share of the objective, differentiable, float32 without dimensions.

        Args:
            tokens: the micro-batch.
            counts: of the whole step, over all micro-batches and ranks.
            weight: lambda, in [0, 1].
            worst: the step's worst group, 0 or 1, where `needs_worst_group`; else None.
        """

    @abstractmethod
    def value(self, sums: Sums, counts: Counts, weight: float) -> Tensor:
        """Return the objective's value over a whole step (or a whole evaluation set) from its sums."""


def worst_group(sums: Sums, counts: Counts) -> Tensor:
    """Return the group with the larger mean loss, int64 without dimensions (paper eq. 4); needs no host-device wait.

    An empty group cannot be the worst. With equal means the important group is taken. With two empty groups, 0.
    """
    important = sums.important / max(counts.important, 1)
    unimportant = sums.unimportant / max(counts.unimportant, 1)
    if counts.important == 0 or counts.unimportant == 0:
        return (important * 0 + (1 if counts.important else 0)).long()
    return (important >= unimportant).long()


def mean_loss(sums: Sums, counts: Counts) -> Tensor:
    """Return the mean of l over B; 0 when B is empty."""
    return (sums.important + sums.unimportant) / max(counts.supervised, 1)


def worst_loss(sums: Sums, counts: Counts) -> Tensor:
    """Return max(mean of l over G1, mean of l over G0) (paper eq. 4); an empty group is left out."""
    worst = worst_group(sums, counts)
    important = sums.important / max(counts.important, 1)
    return important * worst + sums.unimportant / max(counts.unimportant, 1) * (1 - worst)
