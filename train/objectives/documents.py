"""Sums by document: the mean loss of each of a document's groups, and the worst of them.

What enters: tokens with losses. What leaves: tensors by group and document, detached. Documents are never split over
micro-batches, so these add up over them.
"""

from typing import TYPE_CHECKING, NamedTuple

from train.objectives.tokens import Tokens

if TYPE_CHECKING:
    from torch import Tensor


class DocumentMeans(NamedTuple):
    """Group means of each document."""

    mean: "Tensor"  # float32 [G, num_documents], row g = group g; 0 where the group is empty
    size: "Tensor"  # float32 [G, num_documents]
    present: "Tensor"  # bool [G, num_documents]


def document_means(tokens: Tokens) -> DocumentMeans:
    """Return each document's mean loss over its tokens of each group, detached."""
    import torch

    assert tokens.loss is not None
    slot = tokens.document
    if tokens.group is not None:
        slot = slot + tokens.num_documents * tokens.group
    weight = tokens.supervised.to(torch.float32)
    zeros = torch.zeros(tokens.num_groups * tokens.num_documents, dtype=torch.float32, device=tokens.loss.device)
    size = zeros.index_add(0, slot, weight)
    total = zeros.index_add(0, slot, tokens.loss.detach().float() * weight)
    mean = total / size.clamp(min=1)
    return DocumentMeans(*(x.view(tokens.num_groups, -1) for x in (mean, size, size > 0)))


def worst_of_documents(means: DocumentMeans) -> "tuple[Tensor, Tensor]":
    """Return each document's worst group (int64 [num_documents]) and that group's mean (float32).

    An empty group cannot be the worst; among equal means the last one is taken; a document without supervised tokens
    gives 0.
    """
    import torch

    filled = means.mean.masked_fill(~means.present, float("-inf"))
    worst = torch.zeros_like(filled[0], dtype=torch.int64)
    largest = filled[0]
    for group in range(1, len(filled)):
        is_worse = (filled[group] >= largest) & means.present[group]
        worst, largest = torch.where(is_worse, group, worst), torch.where(is_worse, filled[group], largest)
    return worst, means.mean.gather(0, worst[None])[0]
