"""Entropy-adaptive fine-tuning (Diao et al. 2026, "Entropy-Adaptive Fine-Tuning: Resolving Confident Conflicts to
Mitigate Forgetting", arXiv 2601.02151).

    L_EAFT = 1/|B| sum_B sg(g_j) l_j
    g_j    = min(1, H_j / ln K) ^ alpha

H_j    the entropy of the model's prediction of token j, nats; sg: detached
K      how many equally likely tokens open the gate: 20
alpha  how sharply it opens: 1

Tokens that the model is sure about count little, so that those which contradict it do not overwrite what it knows. The
paper takes the entropy over the K most likely tokens, as an approximation; here it is the whole distribution's, which
TRL's fused head gives at no cost, and may exceed ln K: hence the minimum.
"""

from dataclasses import dataclass, field
from math import log
from typing import TYPE_CHECKING

from train.data.counts import Counts
from train.objectives.base import Moment, Settings
from train.objectives.means import MeanOverAll
from train.objectives.tokens import Tokens, exact

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class EntropySettings(Settings):
    """The flags of eaft."""

    entropy_tokens: int = field(
        default=20,
        metadata={
            "help": "The gate is open where as many tokens are equally likely; at least 2 (the paper's K).",
            "least": 2,
        },
    )
    entropy_power: float = field(
        default=1.0,
        metadata={"help": "How sharply the gate opens: the exponent of the normalized entropy, above 0.", "above": 0},
    )


class EntropyGated(MeanOverAll):
    """Each token's loss times the gate that the entropy of its prediction opens."""

    name = "eaft"
    summary = "the mean of each token's loss times the normalized entropy of its prediction"
    paper = "Diao et al. 2026, arXiv 2601.02151"
    Settings = EntropySettings
    asks = frozenset({"entropy"})

    def _gate(self, tokens: Tokens) -> "Tensor":
        assert tokens.entropy is not None
        opened = tokens.entropy.clamp(min=0) / log(self.settings.entropy_tokens)
        return opened.clamp(max=1) ** self.settings.entropy_power

    def statistics(self, tokens: Tokens) -> "Tensor | None":
        """Return the sum of g l."""
        return (exact(tokens.loss) * exact(self._gate(tokens)) * tokens.supervised).sum()[None]

    def weights(self, tokens: Tokens, counts: Counts, decision: "Tensor | None", moment: Moment) -> "Tensor":
        """Return g."""
        return self._gate(tokens)
