"""How tokens get into groups: what an objective asks of the shards, and the plan that follows from what they hold.

What enters: an objective's `Needs`, the shards' columns, the flags. What leaves: a `GroupPlan`, or an error that says
what is missing. Next: `loading.py` reads the shards by it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from common.errors import UserError, raise_together
from common.manifest import Kind
from common.shards import ShardDirectory
from common.thresholds import Ties


@dataclass(frozen=True)
class Needs:
    """What an objective asks of the shards.

    Without `kind`, groups only serve the curves: any column will do, or none.
    """

    kind: Kind | None = None  # of the score column
    quantiles: tuple[float, ...] | None = None  # cut each document's tokens here, in place of at eta
    softness: float | None = None  # tokens belong to both groups, in shares: see `grouping.soft_shares`
    over: Literal["document", "dataset"] = "document"  # what eta is a quantile over
    difference: tuple[str, str] | None = None  # the score is the first column less the second, both reference losses
    scores: bool = False  # the scores themselves travel with the tokens
    hint: str = ""  # what to do where the column is of another kind

    @property
    def is_dynamic(self) -> bool:
        """Whether groups follow from each step's own losses less a reference model's."""
        return self.kind == "reference_loss" and self.difference is None


@dataclass(frozen=True)
class GroupPlan:
    """How tokens get into groups."""

    column: str | None  # the score column; None: no groups
    dynamic: bool  # groups are made at each step from the excess loss against the column
    eta: float
    ties: Ties
    permute_seed: int | None = None  # of the control, in which each training document's groups are dealt out by chance
    quantiles: tuple[float, ...] | None = None
    softness: float | None = None
    over: Literal["document", "dataset"] = "document"
    less: str | None = None  # a column that is subtracted from the score column
    scores: bool = False

    @property
    def num_groups(self) -> int:
        """How many groups there are; 1 where tokens are not split."""
        if self.column is None:
            return 1
        return 2 if self.quantiles is None else len(self.quantiles) + 1

    @property
    def columns(self) -> list[str]:
        """The score columns to read."""
        return [name for name in (self.column, self.less) if name is not None]


def plan_groups(
    shards: Sequence[ShardDirectory], grouper: str | None, needs: Needs, eta: float, ties: Ties, who: str = "it"
) -> GroupPlan:
    """Choose the score column and check that its kind fits what the objective `who` needs.

    Raises:
        UserError: no such column, or a column of the wrong kind.
    """
    kinds = shards[0].columns
    if needs.difference is not None:
        return _plan_difference(shards, grouper, needs, eta, ties, who)
    if needs.kind is None and grouper is None:
        # Only the curves need groups, so shards that do not say which ones give none.
        if len(kinds) != 1 or any(other.columns != kinds for other in shards):
            return GroupPlan(None, False, eta, ties)
        grouper = next(iter(kinds))
    elif grouper is None:
        fitting = [name for name, kind in kinds.items() if kind == needs.kind]
        grouper = fitting[0] if len(fitting) == 1 and needs.is_dynamic else None
    column = shards[0].resolve_column(grouper)
    raise_together([problem for other in shards[1:] if (problem := _lacks(other, column))])
    for other in shards:
        _check_kind(other, column, needs, who)
    dynamic = shards[0].columns[column] == "reference_loss"
    return GroupPlan(column, dynamic, eta, ties, None, needs.quantiles, needs.softness, needs.over, None, needs.scores)


def _plan_difference(
    shards: Sequence[ShardDirectory], grouper: str | None, needs: Needs, eta: float, ties: Ties, who: str
) -> GroupPlan:
    """Plan groups from one reference column less another."""
    assert needs.difference is not None
    if grouper is not None:
        raise UserError(
            f"--grouper {grouper}: objective {who} takes the difference of two columns of reference losses "
            f"({', '.join(needs.difference)}); give one or the other."
        )
    problems = [problem for other in shards for name in needs.difference if (problem := _lacks(other, name))]
    raise_together(list(dict.fromkeys(problems)))
    for other in shards:
        for name in needs.difference:
            if other.columns[name] != "reference_loss":
                raise UserError(
                    f"{other.path}: objective {who} takes the difference of two columns of reference losses, but "
                    f"{name!r} holds {other.columns[name]} scores. {needs.hint}"
                )
    minuend, subtrahend = needs.difference
    return GroupPlan(minuend, False, eta, ties, None, None, None, needs.over, subtrahend)


def _lacks(shards: ShardDirectory, column: str) -> str | None:
    try:
        shards.resolve_column(column)
    except UserError as error:
        return str(error)
    return None


def _check_kind(shards: ShardDirectory, column: str, needs: Needs, who: str) -> None:
    kind = shards.columns[column]
    if needs.kind is None or kind == needs.kind:
        return
    if needs.kind == "reference_loss":
        raise UserError(
            f"{shards.path}: objective {who} with groups from the excess loss needs a column of reference losses, but "
            f"{column!r} holds {kind} scores. Annotate with `--grouper rho1 --reference-model …` and pass --grouper "
            f"rho1. {needs.hint}"
        )
    raise UserError(
        f"{shards.path}: {column!r} holds a reference model's losses, which are no importance by themselves: the "
        f"excess loss needs the model being trained. {needs.hint}"
    )
