"""Group optimization, SFT-GO (Kim et al., "SFT-GO: Supervised Fine-Tuning with Group Optimization"; eq. 3, 4 and 5).

    L_GO    = (1 - lambda) mean_B(l) + lambda L_worst                    eq. 3
    L_worst = max over groups g of mean_Gg(l)                            eq. 4, there of G1 and G0
    lambda  = max(lambda_max (1 - t / T), lambda_min)                    eq. 5; `schedules.py` has others

The paper does not say over what the maximum is taken. Here it is the whole optimizer step (`worst_over` batch), or each
document with the average over documents (sample). An empty group cannot be the worst. Departures that flags ask for:
more than two groups, and soft groups, where a token counts for both groups by its share s_j in group 1:

    mean_G1(l) = sum_B(s l) / sum_B(s)        mean_G0(l) = sum_B((1 - s) l) / sum_B(1 - s)
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from train.data.counts import Counts
from train.data.plan import Needs
from train.objectives.base import Moment, Objective, Settings, mean_loss, worst_group, worst_loss
from train.objectives.documents import document_means, worst_of_documents
from train.objectives.excess import ExcessSettings
from train.objectives.quantiles import QuantileSettings, parse_quantiles, quantile_problems
from train.objectives.schedules import LambdaSchedule, lambda_at
from train.objectives.tokens import Sums, Tokens, exact

if TYPE_CHECKING:
    from torch import Tensor

WorstOver = Literal["batch", "sample"]
DEFAULT_LAMBDA = 0.9  # the paper's value for every run with a lambda (appendix F)


@dataclass
class GroupSettings(QuantileSettings, ExcessSettings, Settings):
    """The flags of go."""

    lambda_max: float = field(
        default=DEFAULT_LAMBDA,
        metadata={"help": "The weight of the worst group's loss at the first step, in [0, 1] (paper eq. 5)."},
    )
    lambda_min: float | None = field(
        default=None,
        metadata={
            "help": "The lower bound that lambda decays to, in [0, lambda_max]. Default: lambda_max, a constant."
        },
    )
    lambda_schedule: LambdaSchedule = field(
        default="linear",
        metadata={
            "help": "How lambda falls from lambda_max to lambda_min: linear (paper eq. 5: towards 0, but not below "
            "lambda_min), cosine, or step (at half of the run)."
        },
    )
    worst_over: WorstOver = field(
        default="batch",
        metadata={
            "help": "Take the worst group over all tokens of the optimizer step (batch), or document by document "
            "(sample)."
        },
    )
    dynamic_groups: bool = field(
        default=False,
        metadata={
            "help": "Compute the groups anew at each step from the excess loss against a column of reference losses "
            "(the rho1 grouper's)."
        },
    )
    soft_groups: float | None = field(
        default=None,
        metadata={
            "help": "Tokens count for both groups, by a share that rises smoothly with the score around the threshold; "
            "this is how smoothly, in standard deviations of the document's scores, such as 0.2.",
            "above": 0,
        },
    )

    def problems(self) -> list[str]:
        """Return what is wrong with these settings."""
        found = _lambda_problems(self.lambda_max, self.lambda_min) + super().problems()
        found += quantile_problems(self.group_quantiles)
        if self.select_over != "document" and not self.dynamic_groups:
            found.append("--select_over: only with --dynamic_groups true; remove the flag.")
        ways = {
            "--dynamic_groups": self.dynamic_groups,
            "--group_quantiles": self.group_quantiles is not None,
            "--soft_groups": self.soft_groups is not None,
        }
        if sum(ways.values()) > 1:
            found.append(
                f"{', '.join(name for name, on in ways.items() if on)}: give one of them, since each makes groups."
            )
        if self.soft_groups is not None and self.worst_over == "sample":
            found.append("--soft_groups: only with --worst_over batch; remove one of the two.")
        return found

    def resolved(self) -> dict[str, Any]:
        """Return the settings with lambda_min as it acts."""
        return {**super().resolved(), "lambda_min": self.smallest}

    @property
    def smallest(self) -> float:
        """`lambda_min` or its default."""
        return self.lambda_max if self.lambda_min is None else self.lambda_min


class GroupOptimization(Objective):
    """The worst group of the whole step, or of each document.

    With the worst group w known, the loss is a weighted sum of token losses, with

        weights = (1 - lambda) / counts.supervised + lambda * share_of(w) / counts.groups[w]

    and by Danskin's theorem its gradient is that of eq. 3.
    """

    name = "go"
    summary = "(1 − λ)·mean + λ·(the largest of the groups' means): group optimization"
    paper = "Kim et al., SFT-GO, eq. 3 to 5"
    Settings = GroupSettings

    @property
    def needs(self) -> Needs:
        """Groups: of an importance, or dynamic ones of reference losses."""
        settings: GroupSettings = self.settings
        if settings.dynamic_groups:
            return Needs(kind="reference_loss", hint="Or take groups from this column: without --dynamic_groups.")
        return Needs(
            kind="importance",
            quantiles=parse_quantiles(settings.group_quantiles),
            softness=settings.soft_groups,
            hint="Use --objective rho1, or --objective go --dynamic_groups, or another --grouper.",
        )

    def lambda_(self, moment: Moment) -> float:
        """Return the weight of the worst group's loss now."""
        settings = self.settings
        return lambda_at(*moment, settings.lambda_max, settings.smallest, settings.lambda_schedule)

    @property
    def _is_by_document(self) -> bool:
        return self.settings.worst_over == "sample"

    def statistics(self, tokens: Tokens) -> "Tensor | None":
        """With the worst group of each document: the sum over documents of that group's mean."""
        if not self._is_by_document:
            return None
        return exact(worst_of_documents(document_means(tokens))[1]).sum()[None]

    def decides(self, moment: Moment) -> bool:
        """Return whether the maximum over the step has any weight."""
        return not self._is_by_document and self.lambda_(moment) > 0

    def decide(self, sums: Sums, counts: Counts, moment: Moment) -> "Tensor":
        """Return the worst group."""
        return worst_group(sums, counts)

    def weights(self, tokens: Tokens, counts: Counts, decision: "Tensor | None", moment: Moment) -> "Tensor":
        """Return (1 - lambda) / |B| + lambda [token in G_worst] / |G_worst|, the latter by document where asked."""
        lambda_ = self.lambda_(moment)
        plain = (1 - lambda_) / max(counts.supervised, 1)
        if not self._is_by_document:
            if decision is None:  # only where lambda is 0
                return plain * tokens.supervised
            of_worst = [(decision == group) / (size or 1) for group, size in enumerate(counts.groups)]
            return plain + lambda_ * tokens.by_group(of_worst)
        means = document_means(tokens)
        worst_of_each, _ = worst_of_documents(means)
        size = means.size.gather(0, worst_of_each[None])[0].clamp(min=1)
        in_worst = (0 if tokens.group is None else tokens.group) == worst_of_each[tokens.document]
        return plain + lambda_ / max(counts.documents, 1) * in_worst / size[tokens.document]

    def value(self, sums: Sums, counts: Counts, moment: Moment) -> "Tensor":
        """Return eq. 3 over the whole step, or with the maximum taken document by document."""
        lambda_ = self.lambda_(moment)
        worst = sums.own[0] / max(counts.documents, 1) if self._is_by_document else worst_loss(sums, counts)
        return (1 - lambda_) * mean_loss(sums, counts) + lambda_ * worst

    def is_plain_mean(self, moment: Moment) -> bool:
        """Return whether eq. 3 is the mean alone."""
        return self.lambda_(moment) == 0

    def curves(self, moment: Moment) -> "dict[str, float | Tensor]":
        """Return lambda."""
        return {"lambda": self.lambda_(moment)}

    def describe(self) -> Sequence[tuple[str, str]]:
        """Say how lambda falls, and over what the maximum is taken."""
        largest, smallest = self.settings.lambda_max, self.settings.smallest
        decay = f"{largest:g}, constant" if largest == smallest else f"{largest:g} decaying to {smallest:g}"
        if largest != smallest and self.settings.lambda_schedule != "linear":
            decay += f" ({self.settings.lambda_schedule})"
        over = "each document, averaged" if self._is_by_document else "all tokens of the optimizer step"
        return [("objective", f"{self.name}, lambda {decay}"), ("maximum taken over", over)]


def _lambda_problems(largest: float, smallest: float | None) -> list[str]:
    found = []
    if not 0.0 <= largest <= 1.0:
        found.append(f"--lambda_max: expected a weight in [0, 1], found {largest}.")
    if smallest is None:
        return found
    if not 0.0 <= smallest <= 1.0:
        found.append(f"--lambda_min: expected a weight in [0, 1], found {smallest}.")
    elif smallest > largest:
        found.append(f"--lambda_min: expected at most --lambda_max ({largest}), found {smallest}. Lambda decays.")
    return found
