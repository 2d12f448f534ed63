"""What every objective is: one class with its flags, and one registry line in `__init__.py`.

A maximum over groups is not additive, so a step that is split over micro-batches and ranks cannot take it part by part.
An objective therefore says four things, and one machinery (`train.loop`) makes any of them exact over any split:

    statistics(tokens)                        sums that add up over micro-batches and ranks
    decide(sums, counts, moment)              what the whole step must agree on: the worst group, group weights, nothing
    weights(tokens, counts, decision, moment) detached weights of the tokens: the step's loss is the sum of
                                              weight × token loss, over all its micro-batches and ranks
    value(sums, counts, moment)               the same objective's number from the sums, for logs and evaluation

Given the decision, the loss is linear in the token losses, so the shares of all parts add up to `value`, and their
gradients to its gradient. The contract tests hold every registered objective to this. Nothing here imports torch, so
that `train run --help` can list objectives with their flags.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import Field, asdict, dataclass, fields
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from train.data.counts import Counts
from train.data.plan import Needs
from train.objectives.tokens import Sums, Tokens

if TYPE_CHECKING:
    from torch import Tensor


class Moment(NamedTuple):
    """Where in the run a step is: schedules read it."""

    step: int = 0  # optimizer steps done before this one
    num_steps: int = 1  # of the whole run


@dataclass
class Settings:
    """An objective's own settings; the fields of a subclass are its flags.

    A field's metadata: `help`, the text for `--help`; of a number that must not be everything, `least`, the smallest
    that it may be, or `above`, what it must be larger than.
    """

    def problems(self) -> list[str]:
        """Return what is wrong with these settings, one sentence each, naming the flag."""
        return [problem for flag in fields(self) if (problem := _out_of_bounds(flag, getattr(self, flag.name)))]

    def resolved(self) -> dict[str, Any]:
        """Return the settings as they act, for `run.json`."""
        return asdict(self)


def _out_of_bounds(flag: "Field[Any]", value: float | None) -> str | None:
    if value is None:
        return None
    least, above = flag.metadata.get("least"), flag.metadata.get("above")
    if least is not None and not least <= value < inf:
        return f"--{flag.name}: expected a number of at least {least}, found {value}."
    if above is not None and not above < value < inf:
        return f"--{flag.name}: expected a number above {above}, found {value}."
    return None


class Objective(ABC):
    """What is minimised."""

    name: ClassVar[str]
    summary: ClassVar[str]  # what is minimised, in a line for `--help`
    paper: ClassVar[str]
    Settings: ClassVar[type[Settings]] = Settings
    # The loss is the base trainer's own, computed by it; settings that change that loss are then allowed.
    is_base_trainers: ClassVar[bool] = False
    asks: ClassVar[frozenset[str]] = frozenset()  # fields of `Tokens` beyond the losses: "entropy", "divergence"
    keeps_state: ClassVar[bool] = False  # `advance` is to be called after every step

    def __init__(self, settings: Any = None):
        """Take settings without problems, by default the defaults."""
        self.settings: Any = self.Settings() if settings is None else settings  # of the class's own kind

    # What it asks of the shards

    @property
    def needs(self) -> Needs:
        """What the shards must hold; by default nothing, and groups only serve the curves."""
        return Needs()

    @property
    def select_over(self) -> str:
        """Over what dynamic groups are ranked: "document" or "batch"."""
        return getattr(self.settings, "select_over", "document")

    def amounts(self, tokens: Tokens) -> tuple[float, ...]:
        """Return numbers of a micro-batch that need no losses and add up, such as the sum of token weights."""
        return ()

    # The mathematics

    def statistics(self, tokens: Tokens) -> "Tensor | None":
        """Return the objective's own sums over a micro-batch, [S] (see `exact`), beside the groups' sums of l."""
        return None

    def decides(self, moment: Moment) -> bool:
        """Return whether `weights` needs what the whole step's sums decide."""
        return False

    def decide(self, sums: Sums, counts: Counts, moment: Moment) -> "Tensor":
        """Return what the step agrees on, numbers without gradient; needs no wait for the device.

        Args:
            sums: of the whole step, or what they are expected to be while it is under way.
            counts: of the whole step, over all micro-batches and ranks.
            moment: the step's.
        """
        raise NotImplementedError

    @abstractmethod
    def weights(self, tokens: Tokens, counts: Counts, decision: "Tensor | None", moment: Moment) -> "Tensor":
        """Return each token's weight, float32 [T], detached; what it is where not supervised does not matter.

        Args:
            tokens: the micro-batch.
            counts: of the whole step, over all micro-batches and ranks.
            decision: of `decide`, where `decides`; else None.
            moment: the step's.
        """

    def divisor(self, counts: Counts) -> float:
        """Return a number that all weights are divided by, where rounding once, at the end, is wanted."""
        return 1

    def token_loss(self, tokens: Tokens) -> "Tensor":
        """Return what the weights multiply, float32 [T], differentiable: by default the cross-entropy."""
        assert tokens.loss is not None
        return tokens.loss

    @abstractmethod
    def value(self, sums: Sums, counts: Counts, moment: Moment) -> "Tensor":
        """Return the objective's value over a whole step, or a whole evaluation set, from its sums."""

    def is_plain_mean(self, moment: Moment) -> bool:
        """Return whether the objective is the mean over all supervised tokens now: the base trainer's own loss."""
        return self.is_base_trainers

    def loss(self, tokens: Tokens, counts: Counts, decision: "Tensor | None", moment: Moment) -> "Tensor":
        """Return one micro-batch's share of the step's loss, differentiable, float32 without dimensions."""
        weights = self.weights(tokens, counts, decision, moment) * tokens.supervised
        total, divisor = (self.token_loss(tokens) * weights).sum(), self.divisor(counts)
        return total if divisor == 1 else total / divisor

    # State, from step to step

    def advance(self, sums: Sums, counts: Counts) -> None:  # noqa: B027 (nothing to do by default)
        """Take in a finished step's sums over all ranks, where `keeps_state`."""

    def state_dict(self) -> dict[str, Any]:
        """Return what the next step depends on beside the moment, as JSON values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 (the same)
        """Go on from another's `state_dict`."""

    # What is said of it

    def curves(self, moment: Moment) -> "dict[str, float | Tensor]":
        """Return what is logged at a step beside the groups' losses, such as lambda."""
        return {}

    def describe(self) -> Sequence[tuple[str, str]]:
        """Return lines for the preflight report: names with texts."""
        return [("objective", self.name)]


def worst_group(sums: Sums, counts: Counts) -> "Tensor":
    """Return the group with the largest mean loss, int64 without dimensions (paper eq. 4); needs no wait.

    An empty group cannot be the worst. Among equal means the last group, the most important one, is taken. Without any
    token, 0.
    """
    import torch

    means = [(group, sums.groups[group] / size) for group, size in enumerate(counts.groups) if size > 0]
    if len(means) < 2:
        return torch.full((), means[0][0] if means else 0, device=sums.groups.device)
    worst, largest = means[0]
    for group, mean in means[1:]:
        is_worse = mean >= largest
        worst, largest = torch.where(is_worse, group, worst), torch.where(is_worse, mean, largest)
    return worst


def group_means(sums: Sums, counts: Counts) -> "Tensor":
    """Return the mean of l over each group, [G]; 0 where a group is empty."""
    import torch

    sizes = [size if size > 0 else float("inf") for size in counts.groups]
    return torch.stack([sums.groups[group] / size for group, size in enumerate(sizes)])


def mean_loss(sums: Sums, counts: Counts) -> "Tensor":
    """Return the mean of l over B; 0 when B is empty."""
    return sums.groups.sum() / max(counts.supervised, 1)


def worst_loss(sums: Sums, counts: Counts) -> "Tensor":
    """Return the largest mean of l over a group (paper eq. 4); an empty group is left out."""
    return group_means(sums, counts)[worst_group(sums, counts)]
