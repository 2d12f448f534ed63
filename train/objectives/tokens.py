"""What an objective works on: the predicted tokens of one micro-batch, and the counts of the whole step.

What enters: per-token losses of one forward pass, already shifted, so that loss, group and document of a position all
belong to the token predicted there. What leaves: sums that add up over micro-batches, ranks and evaluation batches.
Next: an objective turns tokens and counts into a loss, and sums into the same loss's value.

Symbols: B all supervised tokens of one optimizer step, G1 and G0 its important and unimportant ones, l_j the
cross-entropy of token j in nats.
"""

from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """The tokens of one micro-batch, flattened; T positions, padding included."""

    loss: Tensor  # float32 [T], nats, differentiable; 0 where not supervised
    supervised: Tensor  # bool [T]: the position is in B
    important: Tensor  # bool [T]: the position is in G1, a part of B
    document: Tensor  # int64 [T], in [0, num_documents)
    num_documents: int


class Counts(NamedTuple):
    """Number of tokens and documents; over a whole optimizer step where an objective takes them."""

    supervised: int = 0  # |B|
    important: int = 0  # |G1|
    documents: int = 0  # documents with at least one token in B

    @property
    def unimportant(self) -> int:
        """|G0|."""
        return self.supervised - self.important

    def plus(self, other: "Counts") -> "Counts":
        """Return the element-wise sum."""
        return Counts(*(a + b for a, b in zip(self, other, strict=True)))


@dataclass(frozen=True)
class Sums:
    """Sums of losses over the same tokens as a `Counts`, float64 tensors without dimensions (float32 on MPS)."""

    important: Tensor  # sum of l over G1
    unimportant: Tensor  # sum of l over G0
    worst_of_documents: Tensor  # sum over documents of max(mean of l over its G1, mean of l over its G0)

    def plus(self, other: "Sums") -> "Sums":
        """Return the element-wise sum."""
        return Sums(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def minus(self, other: "Sums") -> "Sums":
        """Return the element-wise difference."""
        return Sums(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))

    def stack(self) -> Tensor:
        """Return float64 [3], in the order of the fields."""
        return torch.stack([getattr(self, f.name) for f in fields(self)])

    @staticmethod
    def unstack(values: Tensor) -> "Sums":
        """Invert `stack`."""
        return Sums(*values.unbind())


def count_tokens(tokens: Tokens) -> Counts:
    """Return the counts of one micro-batch (waits for the device: for tests and small inputs)."""
    documents = document_means(tokens).present.any(dim=0).sum()
    return Counts(int(tokens.supervised.sum()), int(tokens.important.sum()), int(documents))


class DocumentMeans(NamedTuple):
    """Group means of each document."""

    mean: Tensor  # float32 [2, num_documents], row g = group g; 0 where the group is empty
    size: Tensor  # float32 [2, num_documents]
    present: Tensor  # bool [2, num_documents]


def document_means(tokens: Tokens) -> DocumentMeans:
    """Return each document's mean loss over its unimportant (row 0) and important (row 1) tokens, detached."""
    slot = tokens.document + tokens.num_documents * tokens.important.long()
    weight = tokens.supervised.to(torch.float32)
    zeros = torch.zeros(2 * tokens.num_documents, dtype=torch.float32, device=tokens.loss.device)
    size = zeros.index_add(0, slot, weight)
    total = zeros.index_add(0, slot, tokens.loss.detach().float() * weight)
    mean = total / size.clamp(min=1)
    return DocumentMeans(*(x.view(2, -1) for x in (mean, size, size > 0)))


def worst_of_documents(means: DocumentMeans) -> tuple[Tensor, Tensor]:
    """Return each document's worst group (int64 [num_documents]) and that group's mean (float32).

    An empty group cannot be the worst; equal means make the important group the worst; a document without supervised
    tokens gives 0.
    """
    filled = means.mean.masked_fill(~means.present, float("-inf"))
    worst = (filled[1] >= filled[0]).long() * means.present[1].long()
    return worst, means.mean.gather(0, worst[None])[0]


def sum_losses(tokens: Tokens, with_documents: bool = False) -> Sums:
    """Return the detached sums of one micro-batch; the sum over documents only where it is asked for."""
    exact = torch.float32 if tokens.loss.device.type == "mps" else torch.float64  # MPS has no float64
    loss = tokens.loss.detach().to(exact)
    important = (loss * tokens.important).sum()
    total = (loss * tokens.supervised).sum()
    of_documents = torch.zeros_like(total)
    if with_documents:
        of_documents = worst_of_documents(document_means(tokens))[1].to(exact).sum()
    return Sums(important, total - important, of_documents)
