"""An objective that a user adds: one class and one registry line. It decides a number over the step, and has a flag.

L = sg(m)^power · m, with m the mean of l over the step; sg: detached
"""

from dataclasses import dataclass, field

from train.objectives import OBJECTIVES
from train.objectives.base import Objective, Settings, mean_loss


@dataclass
class OwnSettings(Settings):
    own_power: float = field(default=1.0, metadata={"help": "The power of the step's mean loss.", "least": 0})


class Own(Objective):
    name = "own"
    summary = "the mean loss times a power of the step's own mean loss"
    paper = "nobody 2026"
    Settings = OwnSettings

    def decides(self, moment):
        return True

    def decide(self, sums, counts, moment):
        return mean_loss(sums, counts)

    def weights(self, tokens, counts, decision, moment):
        return (decision**self.settings.own_power / max(counts.supervised, 1)).float() * tokens.supervised

    def value(self, sums, counts, moment):
        return mean_loss(sums, counts) ** (1 + self.settings.own_power)


def register():
    OBJECTIVES[Own.name] = Own
