"""An objective's own counts of a batch, made where the batch is made.

What enters: an objective. What leaves: a function for the collator, which travels to the data loader's workers; or None
where the objective counts nothing of its own. Next: the step adds the counts up before its first forward pass.
"""

from typing import TYPE_CHECKING, Any

from train.objectives.base import Objective
from train.objectives.tokens import lay_out

if TYPE_CHECKING:
    from torch import Tensor


def amounts_of(objective: Objective, num_groups: int) -> "Amounts | None":
    """Return what gives the objective's `amounts` of a batch; None where the objective has not said any."""
    return None if type(objective).amounts is Objective.amounts else Amounts(objective, num_groups)


class Amounts:
    """An objective's `amounts` of a batch as the collator has it."""

    def __init__(self, objective: Objective, num_groups: int):
        """Ask `objective` about rows of a plan with so many groups."""
        self.objective, self.num_groups = objective, num_groups

    def __call__(self, supervised: "Tensor", batch: dict[str, Any]) -> tuple[float, ...]:
        """Return the amounts of bool [R, C] supervised tokens and what the collator knows of them."""
        return self.objective.amounts(lay_out(supervised[:, 1:].flatten(), batch, self.num_groups))
