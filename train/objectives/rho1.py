"""Rho-1: train on the tokens with the highest excess loss (paper section 3.3, eq. 9, footnote 1).

    excess_j = CE(w_j; theta) - CE(w_j; phi)                             eq. 9

theta is the model being trained, at this very step, and phi a frozen reference model whose losses the shards hold. The
selection is detached: no gradient flows through it. The loss equals eq. 3 with lambda = 1 and the selected tokens taken
as the worst group.
"""

from typing import ClassVar

import torch
from torch import Tensor

from train.objectives.base import Objective
from train.objectives.tokens import Counts, Sums, Tokens


def select_top(score: Tensor, supervised: Tensor, document: Tensor, num_selected: Tensor) -> Tensor:
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


class SelectedMean(Objective):
    """L = mean of l over the selected tokens, which are the important group of the step."""

    name: ClassVar[str] = "rho1"

    def loss(self, tokens: Tokens, counts: Counts, weight: float, worst: Tensor | int | None) -> Tensor:
        """Return sum(l over selected) / |selected of the step|."""
        return (tokens.loss * tokens.important).sum() / max(counts.important, 1)

    def value(self, sums: Sums, counts: Counts, weight: float) -> Tensor:
        """Return the mean of l over the selected tokens."""
        return sums.important / max(counts.important, 1)
