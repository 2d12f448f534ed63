"""Token weights from the shards: the scores of any importance column, as they are.

    L   = sum_B(w l) / sum_B(w)
    w_j = max(score_j, 0) ^ (1 / temperature) + floor

temperature  1 takes scores as they are; a larger one evens them out, a smaller one sharpens them
floor        what a token of score 0 counts; it keeps every token in the loss

The weighted mean over the whole step: the sum of weights is counted over all micro-batches and ranks before the first
pass, so a step may be split anyhow. Scores below 0 count as 0. (No paper; token-weighted cross-entropy as several
trainers take it from a column, such as the `token_weights` of importance-weighted fine-tuning.)
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from train.data.counts import Counts
from train.data.plan import Needs
from train.objectives.base import Moment, Objective, Settings
from train.objectives.tokens import Sums, Tokens, exact

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class WeightSettings(Settings):
    """The flags of weighted."""

    weight_temperature: float = field(
        default=1.0,
        metadata={
            "help": "A token's weight is its score to the power of 1 / temperature: above 1 evens weights out, below 1 "
            "sharpens them.",
            "above": 0,
        },
    )
    weight_floor: float = field(
        default=0.0,
        metadata={"help": "Added to every token's weight, at least 0: what a token of score 0 counts.", "least": 0},
    )


class WeightedMean(Objective):
    """The mean of l over B, each token weighted by its score."""

    name = "weighted"
    summary = "the mean loss with the scores of the column --grouper as token weights"
    paper = ""
    Settings = WeightSettings

    @property
    def needs(self) -> Needs:
        """An importance column, with its scores; its groups serve the curves."""
        return Needs(kind="importance", scores=True, hint="Name a column of importance scores with --grouper.")

    def _weights(self, tokens: Tokens) -> "Tensor":
        assert tokens.score is not None
        return tokens.score.clamp(min=0) ** (1 / self.settings.weight_temperature) + self.settings.weight_floor

    def amounts(self, tokens: Tokens) -> tuple[float, ...]:
        """Return the sum of weights over B."""
        return (float((self._weights(tokens).double() * tokens.supervised).sum()),)

    def statistics(self, tokens: Tokens) -> "Tensor | None":
        """Return the sum of w l."""
        return (exact(tokens.loss) * self._weights(tokens) * tokens.supervised).sum()[None]

    def weights(self, tokens: Tokens, counts: Counts, decision: "Tensor | None", moment: Moment) -> "Tensor":
        """Return w."""
        return self._weights(tokens)

    def divisor(self, counts: Counts) -> float:
        """Return the sum of w over B; 1 where all weights are 0, and with them the loss."""
        return counts.own[0] or 1

    def value(self, sums: Sums, counts: Counts, moment: Moment) -> "Tensor":
        """Return sum(w l) / sum(w)."""
        return sums.own[0] / (counts.own[0] or 1)

    def describe(self) -> Sequence[tuple[str, str]]:
        """Say how scores become weights."""
        settings = self.settings
        how = f"scores ^ (1 / {settings.weight_temperature:g}) + {settings.weight_floor:g}"
        return [("objective", f"{self.name}: {how}; groups for the curves only")]
