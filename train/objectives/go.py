"""Group optimization, SFT-GO (paper eq. 3, 4 and 5).

    L_GO    = (1 - lambda) mean_B(l) + lambda L_worst                    eq. 3
    L_worst = max(mean_G1(l), mean_G0(l))                                eq. 4
    lambda  = max(lambda_max (1 - t / T), lambda_min)                    eq. 5

The paper does not say over what the maximum is taken. Here it is the whole optimizer step (`worst_over="batch"`), or
each document with the average over documents (`"sample"`). An empty group cannot be the worst.
"""

from typing import ClassVar

import torch
from torch import Tensor

from train.objectives.base import Objective, mean_loss, worst_loss
from train.objectives.tokens import Counts, Sums, Tokens, document_means, worst_of_documents
from train.settings.flags import ObjectiveSettings


def lambda_at(step: int, num_steps: int, lambda_max: float, lambda_min: float) -> float:
    """Return lambda for the optimizer step `step` of `num_steps`, counted from 0 (paper eq. 5)."""
    return max(lambda_max * (1 - step / max(num_steps, 1)), lambda_min)


class WorstOfBatch(Objective):
    """The worst group of the whole step.

    With the worst group w known, the loss is a weighted sum of token losses, the same as

        weights = (1 - weight) / counts.supervised + weight * (group == w) / counts.group[w]
        loss = (weights * l)[supervised].sum()

    and by Danskin's theorem its gradient is that of eq. 3.
    """

    name: ClassVar[str] = "go"

    def needs_worst_group(self, weight: float) -> bool:
        """Return whether the maximum has any weight."""
        return weight > 0

    def is_plain_mean(self, weight: float) -> bool:
        """Return whether eq. 3 is the mean alone."""
        return weight == 0

    def loss(self, tokens: Tokens, counts: Counts, weight: float, worst: Tensor | int | None) -> Tensor:
        """Return sum over tokens of (1 - lambda) l / |B| + lambda l [token in G_worst] / |G_worst|."""
        worst = 0 if worst is None else worst  # None only where weight is 0
        in_worst = torch.where(
            tokens.important, worst / max(counts.important, 1), (1 - worst) / max(counts.unimportant, 1)
        )
        weights = (1 - weight) / max(counts.supervised, 1) + weight * in_worst
        return (tokens.loss * (weights * tokens.supervised)).sum()

    def value(self, sums: Sums, counts: Counts, weight: float) -> Tensor:
        """Return eq. 3 over the whole step."""
        return (1 - weight) * mean_loss(sums, counts) + weight * worst_loss(sums, counts)


class WorstOfSample(Objective):
    """The worst group of each document, averaged over the documents that have supervised tokens.

        L_worst = mean over documents d of max(mean_{G1 in d}(l), mean_{G0 in d}(l))

    Additive over documents, so no micro-batch needs to know about another. The first term of eq. 3 stays the mean over
    all tokens.
    """

    name: ClassVar[str] = "go"
    needs_document_sums: ClassVar[bool] = True

    def is_plain_mean(self, weight: float) -> bool:
        """Return whether eq. 3 is the mean alone."""
        return weight == 0

    def loss(self, tokens: Tokens, counts: Counts, weight: float, worst: Tensor | int | None) -> Tensor:
        """Return the documents' share of eq. 3."""
        means = document_means(tokens)
        worst_of_each, _ = worst_of_documents(means)
        size = means.size.gather(0, worst_of_each[None])[0].clamp(min=1)
        in_worst = tokens.important.long() == worst_of_each[tokens.document]
        weights = (1 - weight) / max(counts.supervised, 1)
        weights = weights + weight / max(counts.documents, 1) * in_worst / size[tokens.document]
        return (tokens.loss * (weights * tokens.supervised)).sum()

    def value(self, sums: Sums, counts: Counts, weight: float) -> Tensor:
        """Return eq. 3 with the maximum taken document by document."""
        return (1 - weight) * mean_loss(sums, counts) + weight * sums.worst_of_documents / max(counts.documents, 1)


def group_optimization(settings: ObjectiveSettings) -> Objective:
    """Return the form of the objective that `worst_over` asks for."""
    return (WorstOfSample if settings.resolved_worst_over == "sample" else WorstOfBatch)(settings)
