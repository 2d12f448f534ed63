"""Objectives that are a mean: over all supervised tokens, of something of each token, or over those of group 1.

What enters: tokens and counts, as for every objective. What leaves: the parts that such objectives share. Next: a file
each says what is averaged, or how group 1 is made.
"""

from typing import TYPE_CHECKING

from train.data.counts import Counts
from train.objectives.base import Moment, Objective
from train.objectives.tokens import Sums, Tokens

if TYPE_CHECKING:
    from torch import Tensor


class MeanOverAll(Objective):
    """1/|B| sum_B of weight times token loss: a subclass says what differs from 1 and l, and sums it up first."""

    def weights(self, tokens: Tokens, counts: Counts, decision: "Tensor | None", moment: Moment) -> "Tensor":
        """Return 1 for every token."""
        return tokens.supervised.float()

    def divisor(self, counts: Counts) -> float:
        """Return |B|."""
        return max(counts.supervised, 1)

    def value(self, sums: Sums, counts: Counts, moment: Moment) -> "Tensor":
        """Return the mean over B of what the first of `statistics` sums up."""
        return sums.own[0] / max(counts.supervised, 1)


class MeanOverChosen(Objective):
    """The mean of l over group 1."""

    def weights(self, tokens: Tokens, counts: Counts, decision: "Tensor | None", moment: Moment) -> "Tensor":
        """Return 1 for a token of group 1, else 0."""
        return tokens.share_of(1).float()

    def divisor(self, counts: Counts) -> float:
        """Return |G1|."""
        return max(counts.groups[1], 1)

    def value(self, sums: Sums, counts: Counts, moment: Moment) -> "Tensor":
        """Return the mean of l over G1."""
        return sums.groups[1] / max(counts.groups[1], 1)
