"""Rho-1: train on the tokens with the highest excess loss (Lin et al. 2024, arXiv 2404.07965; paper section 3.3).

    L = mean over the tokens whose excess loss CE(w; theta) - CE(w; phi) is in the top (1 - eta) of their document

The selection (`excess.py`) is made anew at each step and detached. The loss equals eq. 3 with lambda = 1 and the
selected tokens taken as the worst group (footnote 1).
"""

from dataclasses import dataclass

from train.data.plan import Needs
from train.objectives.base import Settings
from train.objectives.excess import ExcessSettings
from train.objectives.means import MeanOverChosen


@dataclass
class Rho1Settings(ExcessSettings, Settings):
    """The flags of rho1."""


class SelectedMean(MeanOverChosen):
    """L = mean of l over group 1, the selected tokens of the step."""

    name = "rho1"
    summary = "the mean loss of the tokens whose excess loss is in the top (1 − η) of their document"
    paper = "Lin et al. 2024, arXiv 2404.07965"
    Settings = Rho1Settings

    @property
    def needs(self) -> Needs:
        """A reference model's losses."""
        return Needs(kind="reference_loss", hint="Or use an objective that takes this column: --objective go.")
