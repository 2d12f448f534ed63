"""Plain supervised fine-tuning: the mean cross-entropy over the supervised tokens."""

from typing import ClassVar

from torch import Tensor

from train.objectives.base import Objective, mean_loss
from train.objectives.tokens import Counts, Sums, Tokens


class SupervisedMean(Objective):
    """L = mean of l over B.

    Training takes the base trainer's own loss (`is_plain_mean`); this is the same number.
    """

    name: ClassVar[str] = "sft"
    needs_groups: ClassVar[bool] = False

    def is_plain_mean(self, weight: float) -> bool:
        """Return True."""
        return True

    def loss(self, tokens: Tokens, counts: Counts, weight: float, worst: Tensor | int | None) -> Tensor:
        """Return sum(l) / |B|."""
        return (tokens.loss * tokens.supervised).sum() / max(counts.supervised, 1)

    def value(self, sums: Sums, counts: Counts, weight: float) -> Tensor:
        """Return the mean of l over B."""
        return mean_loss(sums, counts)
