"""The registry of objectives: name to what builds it from the settings. A new objective is one line here."""

from collections.abc import Callable

from train.objectives.base import Objective
from train.objectives.go import group_optimization
from train.objectives.rho1 import SelectedMean
from train.objectives.sft import SupervisedMean
from train.settings.flags import ObjectiveSettings

OBJECTIVES: dict[str, Callable[[ObjectiveSettings], Objective]] = {
    "sft": SupervisedMean,
    "go": group_optimization,
    "rho1": SelectedMean,
}
