"""All that a run carries from step to step beside what transformers saves: one object with a `state_dict`.

What enters: the trainer's parts, each with its own state. What leaves: JSON values for `resume.json` and tensors for
each rank's own file, and back. Next: `resume.py` writes and reads both.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from train.loop.expected_loss import TokenLosses
from train.loop.step import Redone
from train.objectives.base import Objective
from train.reports.curves import Curves, Reduce


@dataclass
class RunState:
    """What the next step or the next log line depends on."""

    objective: Objective
    curves: Curves
    token_losses: TokenLosses
    redone: Redone = field(default_factory=Redone)

    def state_dict(self, reduce: Reduce) -> dict[str, Any]:
        """Return JSON values that are the same on every rank; `reduce` sums over ranks."""
        return {
            "redone": self.redone.state_dict(),
            "curves": self.curves.state_dict(reduce),
            "objective": self.objective.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], is_first_rank: bool, device: torch.device) -> None:
        """Take up what `state_dict` returned."""
        self.redone.load_state_dict(state["redone"])
        self.curves.load_state_dict(state["curves"], is_first_rank, device)
        self.objective.load_state_dict(state["objective"])

    def tensors(self) -> dict[str, Tensor]:
        """Return this rank's own tensors; none where nothing was guessed."""
        return self.token_losses.state_dict() if bool(self.token_losses.count.any()) else {}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take up what `tensors` returned."""
        self.token_losses.load_state_dict(tensors)
