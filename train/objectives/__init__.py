"""The registry of objectives: name to class. A new one is one file and one line here; the first is the baseline."""

from train.objectives.asft import AnchoredFineTuning
from train.objectives.base import Objective
from train.objectives.cleaned import CleanedMean
from train.objectives.dft import DynamicFineTuning
from train.objectives.dro import RobustMean
from train.objectives.eaft import EntropyGated
from train.objectives.go import GroupOptimization
from train.objectives.rho1 import SelectedMean
from train.objectives.sft import SupervisedMean
from train.objectives.weighted import WeightedMean

OBJECTIVES: dict[str, type[Objective]] = {
    kind.name: kind
    for kind in (
        SupervisedMean,
        GroupOptimization,
        SelectedMean,
        RobustMean,
        DynamicFineTuning,
        AnchoredFineTuning,
        EntropyGated,
        WeightedMean,
        CleanedMean,
    )
}
DEFAULT_OBJECTIVE = GroupOptimization.name
BASELINE_OBJECTIVE = SupervisedMean.name
