"""The curves of figures 1 and 2: kept on the device at each step, read when something is logged.

What enters: sums and counts of whole steps and of evaluation batches. What leaves: the entries of a log line:

    loss_all              mean loss over the supervised tokens, nats
    loss_important        the same over the important ones; left out where there are none
    loss_unimportant      the same over the others; left out where there are none
    loss_group_0, …       in place of these two, where there are more than two groups
    worst_group           the group with the larger mean loss, 0 or 1 (or 2, …); its mean when a line covers some steps
    worst_group_switches  how often the worst group was another one than at the step before, since the run began
    important_share       the share of supervised tokens that is important: in any group but the first
    lambda, …             what the objective adds to these

and, in evaluation, the same (but the last two of the objective's and the run's) with `eval_` in front over the whole
held-out set, where `eval_loss` becomes the objective over that set taken as one step.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from train.data.counts import Counts
from train.objectives.base import Moment, Objective
from train.objectives.tokens import Sums

Reduce = Callable[[Tensor], Tensor]  # the sum over data-parallel ranks


@dataclass
class _Step:
    """What is kept of one step."""

    sums: Tensor  # of all ranks when `is_reduced`, else of this one
    counts: Counts  # of all ranks
    own: dict[str, Any]  # what the objective logs: numbers, or tensors that nobody has waited for yet
    is_reduced: bool


@dataclass
class Curves:
    """What was seen since the last log line."""

    objective: Objective
    has_groups: bool
    num_groups: int
    switches: int = 0
    num_steps: int = 0
    _last_worst: float | None = None
    _steps: list[_Step] = field(default_factory=list)
    _evaluation: tuple[Sums, Counts] | None = None

    def add_step(self, sums: Sums, counts: Counts, moment: Moment, is_reduced: bool) -> None:
        """Keep one step's sums, which are of all ranks when `is_reduced`, else of this one; `counts` are of all."""
        self._steps.append(_Step(sums.stack(), counts, self.objective.curves(moment), is_reduced))

    def add_evaluation(self, sums: Sums, counts: Counts) -> None:
        """Keep one evaluation batch's sums and counts, both of this rank."""
        if self._evaluation is not None:
            sums, counts = self._evaluation[0].plus(sums), self._evaluation[1].plus(counts)
        self._evaluation = (sums, counts)

    def state_dict(self, reduce: Reduce) -> dict[str, Any]:
        """Return the steps since the last log line as JSON values, over all ranks, to be kept through a kill."""
        rows = self._reduced(reduce)
        return {
            "switches": self.switches,
            "num_steps": self.num_steps,
            "last_worst": self._last_worst,
            "steps": [
                [row.tolist(), list(step.counts), _numbers(step.own), step.is_reduced]
                for row, step in zip(rows, self._steps, strict=True)
            ],
        }

    def load_state_dict(self, state: dict[str, Any], is_first_rank: bool, device: torch.device) -> None:
        """Take up what `state_dict` returned; sums that are still to be reduced go to one rank alone."""
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self.switches, self.num_steps = state["switches"], state["num_steps"]
        self._last_worst = state["last_worst"]
        self._steps = [
            _Step(
                torch.tensor(sums, dtype=dtype, device=device) * (is_reduced or is_first_rank),
                Counts(supervised, documents, tuple(groups), tuple(amounts)),
                own,
                is_reduced,
            )
            for sums, (supervised, documents, groups, amounts), own, is_reduced in state["steps"]
        ]

    def flush_steps(self, reduce: Reduce) -> dict[str, float]:
        """Return the entries for the steps since the last call, averaged over them, and forget them."""
        if not self._steps:
            return {}
        lines = []
        for row, step in zip(self._reduced(reduce), self._steps, strict=True):
            line = self._describe(Sums.unstack(row, self.num_groups), step.counts)
            self._count_switch(line.get("worst_group"))
            lines.append(line | _numbers(step.own))
        self._steps.clear()
        logs = {
            name: sum(values) / len(values)
            for name in dict.fromkeys(name for line in lines for name in line)
            if (values := [line[name] for line in lines if name in line])
        }
        return logs | ({"worst_group_switches": self.switches} if self.has_groups else {})

    def flush_evaluation(self, reduce: Reduce, moment: Moment) -> dict[str, float]:
        """Return the entries for the evaluation since the last call, and forget it."""
        if self._evaluation is None:
            return {}
        sums, counts = self._evaluation
        self._evaluation = None
        local = sums.stack()
        values = reduce(torch.cat([local, local.new_tensor(counts.flatten())])).cpu()
        sums = Sums.unstack(values[: len(local)], self.num_groups)
        counts = Counts.unflatten(values[len(local) :].tolist(), counts)
        logs = {"eval_loss": float(self.objective.value(sums, counts, moment))}
        return logs | {f"eval_{name}": value for name, value in self._describe(sums, counts).items()}

    def summary(self) -> dict[str, float] | None:
        """Return how often the worst group changed in the whole run, for `run.json`; None without groups."""
        if not self.has_groups:
            return None
        return {"count": self.switches, "share_of_steps": self.switches / max(self.num_steps - 1, 1)}

    def _reduced(self, reduce: Reduce) -> Tensor:
        """Return the kept steps' sums over all ranks, [steps, sums], on the CPU."""
        if not self._steps:
            return torch.zeros(0, 0)
        stacked = torch.stack([step.sums for step in self._steps])
        local = [index for index, step in enumerate(self._steps) if not step.is_reduced]
        if len(local) == len(self._steps):
            stacked = reduce(stacked)
        elif local:
            stacked[local] = reduce(stacked[local])
        return stacked.cpu()

    def _count_switch(self, worst: float | None) -> None:
        self.num_steps += 1
        if worst is None:
            return
        self.switches += self._last_worst is not None and worst != self._last_worst
        self._last_worst = worst

    def _describe(self, sums: Sums, counts: Counts) -> dict[str, float]:
        """Return the curves' values for one step or one held-out set; entries without a value are left out."""
        if counts.supervised == 0:
            return {}
        line = {"loss_all": float(sums.groups.sum()) / counts.supervised}
        if not self.has_groups:
            return line
        names, totals = group_names(self.num_groups), sums.groups.tolist()
        means = {
            group: totals[group] / counts.groups[group]
            for group in reversed(range(self.num_groups))
            if counts.groups[group] > 0
        }
        line |= {f"loss_{names[group]}": mean for group, mean in means.items()}
        line["worst_group"] = float(max(means, key=lambda group: (means[group], group)))
        line["important_share"] = sum(counts.groups[1:]) / counts.supervised
        return line


def _numbers(own: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in own.items()}


def group_names(num_groups: int) -> list[str]:
    """Return what groups are called in logs, by number."""
    return ["unimportant", "important"] if num_groups == 2 else [f"group_{group}" for group in range(num_groups)]


def group_curves(entry: Iterable[str]) -> list[str]:
    """Return the names of the groups' losses among the names of a log entry, the most important group first."""
    two = [name for name in ("loss_important", "loss_unimportant") if name in entry]
    many = [name for name in entry if name.startswith("loss_group_")]
    return two or sorted(many, key=lambda name: -int(name.removeprefix("loss_group_")))
