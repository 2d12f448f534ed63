"""The six curves of figures 1 and 2: kept on the device at each step, read when something is logged.

What enters: sums and counts of whole steps and of evaluation batches. What leaves: the entries of a log line:

    loss_all           mean loss over the supervised tokens, nats
    loss_important     the same over the important ones; left out where there are none
    loss_unimportant   the same over the others; left out where there are none
    worst_group        the group with the larger mean loss, 0 or 1; its mean when a line covers several steps
    lambda             the weight of the worst group's loss (eq. 5); objective go only
    important_share    the share of supervised tokens that is important

and, in evaluation, the same with `eval_` in front over the whole held-out set, where `eval_loss` becomes the objective
over that set taken as one step.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from train.loop.step import Reduce
from train.objectives.base import Objective
from train.objectives.tokens import Counts, Sums


@dataclass
class Curves:
    """What was seen since the last log line."""

    objective: Objective
    _steps: list[tuple[Tensor, Counts, float, bool]] = field(default_factory=list)
    _evaluation: tuple[Sums, Counts] | None = None

    def add_step(self, sums: Sums, counts: Counts, weight: float, is_reduced: bool) -> None:
        """Keep one step's sums, which are of all ranks when `is_reduced`, else of this one; `counts` are of all."""
        self._steps.append((sums.stack(), counts, weight, is_reduced))

    def add_evaluation(self, sums: Sums, counts: Counts) -> None:
        """Keep one evaluation batch's sums and counts, both of this rank."""
        if self._evaluation is not None:
            sums, counts = self._evaluation[0].plus(sums), self._evaluation[1].plus(counts)
        self._evaluation = (sums, counts)

    def pending(self, reduce: Reduce) -> list[list]:
        """Return the steps since the last log line as JSON values, over all ranks, to be kept through a kill."""
        if not self._steps:
            return []
        stacked = torch.stack([sums for sums, *_ in self._steps])
        if not self._steps[0][3]:
            stacked = reduce(stacked)
        return [
            [row.tolist(), list(counts), weight, is_reduced]
            for row, (_, counts, weight, is_reduced) in zip(stacked.cpu(), self._steps, strict=True)
        ]

    def restore(self, pending: list[list], is_first_rank: bool, device: torch.device) -> None:
        """Take up what `pending` returned; sums that are still to be reduced go to one rank alone."""
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self._steps = [
            (
                torch.tensor(sums, dtype=dtype, device=device) * (is_reduced or is_first_rank),
                Counts(*counts),
                weight,
                is_reduced,
            )
            for sums, counts, weight, is_reduced in pending
        ]

    def flush_steps(self, reduce: Reduce, has_groups: bool) -> dict[str, float]:
        """Return the entries for the steps since the last call, averaged over them, and forget them."""
        if not self._steps:
            return {}
        stacked = torch.stack([sums for sums, *_ in self._steps])
        reduced = {is_reduced for *_, is_reduced in self._steps}
        assert len(reduced) == 1, "an objective either needs the step's worst group at every step, or at none"
        if not reduced.pop():
            stacked = reduce(stacked)
        lines = [
            describe(Sums.unstack(row), counts, has_groups)
            | ({"lambda": weight} if self.objective.name == "go" else {})
            for row, (_, counts, weight, _) in zip(stacked.cpu(), self._steps, strict=True)
        ]
        self._steps.clear()
        return {
            name: sum(values) / len(values)
            for name in dict.fromkeys(name for line in lines for name in line)
            if (values := [line[name] for line in lines if name in line])
        }

    def flush_evaluation(self, reduce: Reduce, weight: float, has_groups: bool) -> dict[str, float]:
        """Return the entries for the evaluation since the last call, and forget it."""
        if self._evaluation is None:
            return {}
        sums, counts = self._evaluation
        self._evaluation = None
        values = reduce(torch.cat([sums.stack(), sums.stack().new_tensor(counts)])).cpu()
        sums, counts = Sums.unstack(values[:3]), Counts(*(round(n) for n in values[3:].tolist()))
        logs = {"eval_loss": float(self.objective.value(sums, counts, weight))}
        return logs | {f"eval_{name}": value for name, value in describe(sums, counts, has_groups).items()}


def describe(sums: Sums, counts: Counts, has_groups: bool) -> dict[str, float]:
    """Return the curves' values for one step or one held-out set; entries without a value are left out."""
    if counts.supervised == 0:
        return {}
    important, unimportant = float(sums.important), float(sums.unimportant)
    line = {"loss_all": (important + unimportant) / counts.supervised}
    if not has_groups:
        return line
    if counts.important:
        line["loss_important"] = important / counts.important
    if counts.unimportant:
        line["loss_unimportant"] = unimportant / counts.unimportant
    line["worst_group"] = float(
        line.get("loss_important", float("-inf")) >= line.get("loss_unimportant", float("-inf"))
    )
    line["important_share"] = counts.important / counts.supervised
    return line
