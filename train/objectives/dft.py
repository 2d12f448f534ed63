"""Dynamic fine-tuning (Wu et al. 2025, "On the Generalization of SFT: A Reinforcement Learning Perspective with Reward
Rectification", arXiv 2508.05629, eq. 9).

    L_DFT = 1/|B| sum_B sg(p_j) l_j

p_j = exp(-l_j)  the model's probability of token j
sg               stop-gradient: the probability is a weight, not a part of what is minimised
"""

from typing import TYPE_CHECKING

from train.data.counts import Counts
from train.objectives.base import Moment
from train.objectives.means import MeanOverAll
from train.objectives.tokens import Tokens, exact

if TYPE_CHECKING:
    from torch import Tensor


class DynamicFineTuning(MeanOverAll):
    """Each token's loss times its own detached probability; equal to TRL's `loss_type="dft"`."""

    name = "dft"
    summary = "the mean of each token's loss times its own detached probability"
    paper = "Wu et al. 2025, arXiv 2508.05629"

    def statistics(self, tokens: Tokens) -> "Tensor | None":
        """Return the sum of p l."""
        loss = exact(tokens.loss)
        return (loss * (-loss).exp() * tokens.supervised).sum()[None]

    def weights(self, tokens: Tokens, counts: Counts, decision: "Tensor | None", moment: Moment) -> "Tensor":
        """Return p."""
        assert tokens.loss is not None
        return (-tokens.loss.detach()).exp()
