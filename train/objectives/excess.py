"""Dynamic groups: the tokens with the highest excess loss of each step (paper section 3.3, eq. 9).

    excess_j = CE(w_j; theta) - CE(w_j; phi)                             eq. 9

theta is the model being trained, at this very step, and phi a frozen reference model whose losses the shards hold. The
selection is detached: no gradient flows through it. What enters: scores of tokens. What leaves: which are selected.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

SelectOver = Literal["document", "batch"]


@dataclass
class ExcessSettings:
    """The flags of objectives that select by the excess loss."""

    select_over: SelectOver = field(
        default="document",
        metadata={
            "help": "Rank the excess loss within each document, or over the batch of one forward pass (rho1, and go "
            "with --dynamic_groups)."
        },
    )


def select_top(score: "Tensor", supervised: "Tensor", document: "Tensor", num_selected: "Tensor") -> "Tensor":
    """Return which tokens have the highest scores of their document: the rank rule of `common.thresholds`.

    Equal scores go to the earlier position. The same, document by document and in plain code, as

        important_tokens(score, supervised, eta, ties="rank").important

    Args:
        score: float [T].
        supervised: bool [T]; the others are never selected.
        document: int64 [T], in [0, D).
        num_selected: int64 [D], at most the number of supervised tokens of each document.

    Returns:
        bool [T].
    """
    import torch

    score = score.detach().masked_fill(~supervised, float("-inf"))
    order = torch.argsort(score, descending=True, stable=True)
    order = order[torch.argsort(document[order], stable=True)]  # by document, then by falling score, then by position
    sorted_document = document[order]
    size = torch.zeros_like(num_selected).index_add(0, document, torch.ones_like(document))
    start = size.cumsum(0) - size
    rank = torch.arange(len(order), device=order.device) - start[sorted_document]
    selected = torch.zeros_like(supervised)
    selected[order] = rank < num_selected[sorted_document]
    return selected & supervised
