"""Token cleaning (Pang et al. 2025, "Token Cleaning: Fine-Grained Data Selection for LLM Supervised Fine-Tuning", arXiv
2502.01968): train on the tokens whose loss improves most from a base to a reference model, over the whole data set.

    score_j = CE(w_j; theta_base) - CE(w_j; theta_reference)
    L       = mean of l over the tokens whose score is above the eta-quantile of all supervised tokens' scores

Fixed before training (the paper's "fixed-model cleaning"), where rho1 selects anew at each step and within each
document. The difference is a column of the shards (`--grouper rho1_excess`, which `annotate run --grouper rho1
--reference-model … --base-model …` writes), or both losses are, under any names. Where it is above 0, the reference
model predicts the token better. The paper keeps 60 % of the tokens: --eta 0.4.
"""

from dataclasses import dataclass, field

from train.data.plan import Needs
from train.objectives.base import Settings
from train.objectives.means import MeanOverChosen


@dataclass
class CleaningSettings(Settings):
    """The flags of cleaned."""

    base_losses: str | None = field(
        default=None,
        metadata={"help": "A column of the base model's losses; with --reference_losses."},
    )
    reference_losses: str | None = field(
        default=None,
        metadata={
            "help": "The column of the reference model's losses, such as rho1. Without both: --grouper's scores."
        },
    )

    def problems(self) -> list[str]:
        """Return what is wrong with these settings."""
        if (self.base_losses is None) == (self.reference_losses is None):
            return []
        return ["--base_losses and --reference_losses: the score is the difference of the two; give both, or neither."]


class CleanedMean(MeanOverChosen):
    """L = mean of l over group 1, the tokens that are kept."""

    name = "cleaned"
    summary = "the mean loss of the (1 − η) of all tokens whose loss improves most from a base to a reference model"
    paper = "Pang et al. 2025, arXiv 2502.01968"
    Settings = CleaningSettings

    @property
    def needs(self) -> Needs:
        """Two columns of reference losses, or one of their difference; one threshold for the whole data set."""
        settings = self.settings
        both = None if settings.base_losses is None else (settings.base_losses, settings.reference_losses)
        return Needs(
            kind="importance",
            over="dataset",
            difference=both,
            hint="Annotate with `--grouper rho1 --reference-model … --base-model …` and pass --grouper rho1_excess.",
        )
