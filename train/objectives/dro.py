"""Group DRO (Sagawa et al. 2020, "Distributionally Robust Neural Networks for Group Shifts", arXiv 1911.08731,
algorithm 1): group weights q on the simplex, raised for the groups with the larger losses by exponentiated gradient.

    q_g(t) = q_g(t-1) exp(step L_g(t)) / sum over groups h of q_h(t-1) exp(step L_h(t))
    L(t)   = sum over groups g of q_g L_g(t)

L_g   mean of l over the step's tokens of group g; a group that the step has none of keeps its part of q, and the
      others share its weight in this step
step  the step size of q: 0 keeps the mean over groups; the first step's q goes to the worst group as it grows

Which q a step is minimised under is a choice: its own (`step`, as in the paper), or the last step's (`previous`). Both
are exact over any split. With its own, q follows from the whole step's losses, as go's worst group does; but it is a
number that no guess meets, so every accumulated micro-batch but the last is run twice. The last step's q costs nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from train.data.counts import Counts
from train.data.plan import Needs
from train.objectives.base import Moment, Objective, Settings, group_means
from train.objectives.quantiles import QuantileSettings, parse_quantiles, quantile_problems
from train.objectives.tokens import Sums, Tokens

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class RobustSettings(QuantileSettings, Settings):
    """The flags of dro."""

    dro_step: float = field(
        default=0.01,
        metadata={"help": "The step size of the group weights q, at least 0 (the paper's eta_q).", "least": 0},
    )
    dro_q: Literal["step", "previous"] = field(
        default="step",
        metadata={
            "help": "Minimise each step under the q that its own losses give (step, as in the paper; with accumulated "
            "micro-batches, all but the last are run twice), or under the last step's (previous)."
        },
    )

    def problems(self) -> list[str]:
        """Return what is wrong with these settings."""
        return super().problems() + quantile_problems(self.group_quantiles)


class RobustMean(Objective):
    """The mean of the groups' means under q."""

    name = "dro"
    summary = "the groups' mean losses weighted by q, which exponentiated gradient moves to the worst ones"
    paper = "Sagawa et al. 2020, arXiv 1911.08731"
    Settings = RobustSettings
    keeps_state = True

    def __init__(self, settings: Any = None):
        """Begin with equal weights."""
        super().__init__(settings)
        self.log_q: list[float] | Tensor | None = None  # logarithms of q, [G]; None: equal weights

    @property
    def needs(self) -> Needs:
        """Groups of an importance."""
        return Needs(
            kind="importance",
            quantiles=parse_quantiles(self.settings.group_quantiles),
            hint="Name a column of importance scores with --grouper.",
        )

    @property
    def _is_own(self) -> bool:
        return self.settings.dro_q == "step"

    def _moved(self, sums: Sums, counts: Counts) -> "Tensor":
        """Return log q after the step whose sums these are, [G], normalized."""
        log_q = self._log_q(sums.groups)
        present = [group for group, size in enumerate(counts.groups) if size > 0]
        if not present:
            return log_q
        raised = (log_q + self.settings.dro_step * group_means(sums, counts))[present]
        moved = log_q.clone()
        moved[present] = raised.log_softmax(dim=0) + log_q[present].logsumexp(dim=0)
        return moved

    def _log_q(self, like: "Tensor") -> "Tensor":
        import torch

        if self.log_q is None:
            return torch.zeros_like(like).log_softmax(dim=0)
        return torch.as_tensor(self.log_q, dtype=like.dtype, device=like.device)

    def decides(self, moment: Moment) -> bool:
        """Return whether the step's own q is asked for."""
        return self._is_own

    def decide(self, sums: Sums, counts: Counts, moment: Moment) -> "Tensor":
        """Return q, [G]."""
        return self._moved(sums, counts).exp()

    def weights(self, tokens: Tokens, counts: Counts, decision: "Tensor | None", moment: Moment) -> "Tensor":
        """Return q_g / |G_g| for a token of group g, with q over the groups that the step has."""
        assert tokens.loss is not None
        q = self._log_q(tokens.loss.detach()).exp() if decision is None else decision.to(tokens.loss.dtype)
        q = q / _present(q, counts)
        return tokens.by_group([q[group] / (size or 1) for group, size in enumerate(counts.groups)])

    def value(self, sums: Sums, counts: Counts, moment: Moment) -> "Tensor":
        """Return the mean of the groups' means under q."""
        q = self.decide(sums, counts, moment) if self._is_own else self._log_q(sums.groups).exp()
        return (group_means(sums, counts) * (q / _present(q, counts))).sum()

    def advance(self, sums: Sums, counts: Counts) -> None:
        """Move q by a finished step."""
        self.log_q = self._moved(sums, counts)

    def state_dict(self) -> dict[str, Any]:
        """Return log q."""
        return {"log_q": self.log_q if self.log_q is None or isinstance(self.log_q, list) else self.log_q.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up log q."""
        self.log_q = state["log_q"]

    def curves(self, moment: Moment) -> "dict[str, float | Tensor]":
        """Return the weight q of each group, after the step."""
        if self.log_q is None or isinstance(self.log_q, list):
            return {}
        return {f"q_{group}": value for group, value in enumerate(self.log_q.exp())}

    def describe(self) -> Sequence[tuple[str, str]]:
        """Say which q a step is minimised under."""
        of = "its own losses" if self._is_own else "the step before"
        return [
            ("objective", f"{self.name}, step size {self.settings.dro_step:g}"),
            ("group weights", f"exact over the whole optimizer step, from {of}"),
        ]


def _present(q: "Tensor", counts: Counts) -> "Tensor":
    """Return the sum of q over the groups that have tokens."""
    found = [q[group] for group, size in enumerate(counts.groups) if size > 0]
    return sum(found) if found else q.sum()
