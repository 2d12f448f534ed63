"""How many tokens and documents there are: of a micro-batch, and summed, of a whole optimizer step.

What enters: integers from the collator, known before any forward pass. What leaves: the numbers that an objective
divides by. They add up over micro-batches and ranks.
"""

from typing import NamedTuple


class Counts(NamedTuple):
    """Numbers of tokens and documents; over a whole optimizer step where an objective takes them."""

    supervised: int = 0  # |B|
    documents: int = 0  # documents with at least one token in B
    groups: tuple[float, ...] = (0, 0)  # tokens of each group in B; with soft groups the sums of their shares
    own: tuple[float, ...] = ()  # the objective's own `amounts`

    def plus(self, other: "Counts") -> "Counts":
        """Return the element-wise sum."""
        return Counts.unflatten([a + b for a, b in zip(self.flatten(), other.flatten(), strict=True)], self)

    def flatten(self) -> list[float]:
        """Return all numbers in one list."""
        return [self.supervised, self.documents, *self.groups, *self.own]

    @staticmethod
    def unflatten(values: list[float], like: "Counts") -> "Counts":
        """Invert `flatten` of counts with as many groups and amounts as `like`; whole numbers become integers."""
        supervised, documents, *rest = (int(value) if float(value).is_integer() else value for value in values)
        return Counts(int(supervised), int(documents), tuple(rest[: len(like.groups)]), tuple(rest[len(like.groups) :]))
