"""Plain supervised fine-tuning: the mean cross-entropy over the supervised tokens.

L = 1/|B| sum_B l_j
"""

from typing import TYPE_CHECKING

from train.data.counts import Counts
from train.objectives.base import Moment, mean_loss
from train.objectives.means import MeanOverAll
from train.objectives.tokens import Sums

if TYPE_CHECKING:
    from torch import Tensor


class SupervisedMean(MeanOverAll):
    """The mean of l over B. Training takes the base trainer's own loss; this is the same number."""

    name = "sft"
    summary = "the mean loss of the supervised tokens: TRL's own path, unchanged"
    paper = ""
    is_base_trainers = True

    def value(self, sums: Sums, counts: Counts, moment: Moment) -> "Tensor":
        """Return the mean of l over B."""
        return mean_loss(sums, counts)
