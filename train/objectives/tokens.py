"""What an objective works on: the predicted tokens of one micro-batch, and sums over the whole step.

What enters: a batch of the collator, and the per-token losses of one forward pass, already shifted, so that loss, group
and document of a position all belong to the token predicted there. What leaves: sums that add up over micro-batches,
ranks and evaluation batches. Next: an objective turns tokens and counts into weights, and sums into its own value.

Symbols: B all supervised tokens of one optimizer step, G_g its tokens of group g (G1 the important ones where there are
two), l_j the cross-entropy of token j in nats.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from train.data.counts import Counts

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """The tokens of one micro-batch, flattened; T positions, padding included.

    What the objective did not ask for is None; the losses too, where it is asked for `amounts`, before any pass.
    """

    supervised: "Tensor"  # bool [T]: the position is in B
    document: "Tensor"  # int64 [T], in [0, num_documents)
    num_documents: int
    num_groups: int = 1
    loss: "Tensor | None" = None  # float32 [T], nats, differentiable; 0 where not supervised
    group: "Tensor | None" = None  # int64 [T], in [0, num_groups); 0 where not supervised
    share: "Tensor | None" = None  # float32 [T]: with soft groups, how much of the token is in group 1
    score: "Tensor | None" = None  # float32 [T]
    reference_loss: "Tensor | None" = None  # float32 [T], nats
    entropy: "Tensor | None" = None  # float32 [T], nats, detached: of the model's own prediction
    divergence: "Tensor | None" = None  # float32 [T], nats, differentiable: KL(base model || model)

    def share_of(self, group: int) -> "Tensor":
        """Return how much of each token is in a group: bool [T], or float32 [T] with soft groups."""
        if self.share is not None:
            return self.share if group == 1 else (1 - self.share) * self.supervised
        if self.group is None:
            return self.supervised
        of_group = self.group == group
        return of_group if group else of_group & self.supervised

    def by_group(self, values: "list[Tensor]") -> "Tensor":
        """Return each token's value of its group, [T]: the sum over groups of share × value.

        Args:
            values: one of each group, without dimensions.

        Returns:
            What it is where not supervised does not matter.
        """
        import torch

        if self.share is not None:
            return (1 - self.share) * values[0] + self.share * values[1]
        return values[0] if self.group is None else torch.stack(values)[self.group]


class Sums(NamedTuple):
    """Sums over the same tokens as a `Counts`, float64 (float32 on MPS)."""

    groups: "Tensor"  # [G]: the sum of l over each group
    own: "Tensor"  # [S]: the objective's own `statistics`

    def plus(self, other: "Sums") -> "Sums":
        """Return the element-wise sum."""
        return Sums(self.groups + other.groups, self.own + other.own)

    def minus(self, other: "Sums") -> "Sums":
        """Return the element-wise difference."""
        return Sums(self.groups - other.groups, self.own - other.own)

    def stack(self) -> "Tensor":
        """Return all sums in one vector [G + S]."""
        import torch

        return torch.cat([self.groups, self.own]) if len(self.own) else self.groups

    @staticmethod
    def unstack(values: "Tensor", num_groups: int) -> "Sums":
        """Invert `stack`."""
        return Sums(values[:num_groups], values[num_groups:])


def exact(values: "Tensor") -> "Tensor":
    """Return detached values in the precision of sums."""
    import torch

    values = values.detach()
    return values.to(torch.float32 if values.device.type == "mps" else torch.float64)  # MPS has no float64


def group_sums(tokens: Tokens) -> "Tensor":
    """Return the sum of l over each group, [G]."""
    import torch

    assert tokens.loss is not None
    loss = exact(tokens.loss)
    total = (loss * tokens.supervised).sum()
    others = [(loss * tokens.share_of(group)).sum() for group in range(1, tokens.num_groups)]
    rest = total
    for other in others:
        rest = rest - other
    return torch.stack([rest, *others])


def count_tokens(tokens: Tokens, own: tuple[float, ...] = ()) -> Counts:
    """Return the counts of one micro-batch (waits for the device: for tests and small inputs)."""
    total = int(tokens.supervised.sum())
    others = [tokens.share_of(group).sum().item() for group in range(1, tokens.num_groups)]
    documents = len(tokens.document[tokens.supervised].unique())
    return Counts(total, documents, (total - sum(others), *others), own)


def lay_out(supervised: "Tensor", extra: dict[str, Any], num_groups: int) -> Tokens:
    """Return the tokens of a batch as far as they are known before a forward pass: position j - 1 predicts token j.

    Args:
        supervised: bool [R · (C - 1)].
        extra: what the collator gave beside TRL's entries, [R, C].
        num_groups: how many groups the plan makes.
    """
    document = extra["document"][:, 1:].flatten()
    assert supervised.shape == document.shape, "the model must return one prediction for every token but the first"
    known = {
        name: extra[name][:, 1:].flatten()
        for name in ("group", "share", "score", "reference_loss")
        if extra.get(name) is not None
    }
    return Tokens(supervised, document, extra["num_documents"], num_groups, **known)


def with_losses(tokens: Tokens, extra: dict[str, Any], select_over: str, loss: "Tensor", **more: Any) -> Tokens:
    """Put losses beside the tokens, and groups too where they follow from the losses.

    Args:
        tokens: of `lay_out`.
        extra: as there.
        select_over: over what dynamic groups are ranked, "document" or "batch".
        loss: float32 [T], nats.
        more: `entropy` and `divergence`, where the objective asks for them.
    """
    import torch

    from train.objectives.excess import select_top

    tokens = replace(tokens, loss=loss, **more)
    if extra.get("num_selected") is None:
        return tokens
    excess = loss.detach() - tokens.reference_loss
    over = tokens.document if select_over == "document" else torch.zeros_like(tokens.document)
    return replace(tokens, group=select_top(excess, tokens.supervised, over, extra["num_selected"]).long())
