"""Anchored supervised fine-tuning (Zhu et al. 2025, "Anchored Supervised Fine-Tuning", arXiv 2509.23753).

    L_ASFT = 1/|B| sum_B ( sg(p_j) l_j + beta KL_j )
    KL_j   = sum over the vocabulary v of p_0(v) (log p_0(v) - log p(v))

p_j    the model's probability of token j, detached (sg): dynamic fine-tuning, `dft.py`
p, p_0 the model's and the frozen base model's distribution of token j given its prefix
beta   the weight of the anchor

The direction of the divergence is that of the authors' code. The base model is the model before the first step: with
its adapters off under LoRA, else a frozen copy (`train/loop/anchor.py`); one more forward pass a step.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from train.data.counts import Counts
from train.objectives.base import Moment, Settings
from train.objectives.means import MeanOverAll
from train.objectives.tokens import Sums, Tokens, exact

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class AnchorSettings(Settings):
    """The flags of asft."""

    anchor_weight: float = field(
        default=0.1,
        metadata={
            "help": "The weight of the divergence from the base model, at least 0; 0 is dft at a higher cost.",
            "least": 0,
        },
    )


class AnchoredFineTuning(MeanOverAll):
    """Dynamic fine-tuning that is held near the base model."""

    name = "asft"
    summary = "dft with a divergence from the frozen base model as an anchor"
    paper = "Zhu et al. 2025, arXiv 2509.23753"
    Settings = AnchorSettings
    asks = frozenset({"divergence"})

    def token_loss(self, tokens: Tokens) -> "Tensor":
        """Return p l + beta KL."""
        assert tokens.loss is not None
        assert tokens.divergence is not None
        return (-tokens.loss.detach()).exp() * tokens.loss + self.settings.anchor_weight * tokens.divergence

    def statistics(self, tokens: Tokens) -> "Tensor | None":
        """Return the sums of p l and of KL."""
        import torch

        loss = exact(tokens.loss)
        weighted = (loss * (-loss).exp() * tokens.supervised).sum()
        return torch.stack([weighted, (exact(tokens.divergence) * tokens.supervised).sum()])

    def value(self, sums: Sums, counts: Counts, moment: Moment) -> "Tensor":
        """Return the mean of p l + beta KL over B."""
        return (sums.own[0] + self.settings.anchor_weight * sums.own[1]) / max(counts.supervised, 1)

    def describe(self) -> Sequence[tuple[str, str]]:
        """Say how strong the anchor is."""
        return [("objective", f"{self.name}, anchored to the base model with weight {self.settings.anchor_weight:g}")]
