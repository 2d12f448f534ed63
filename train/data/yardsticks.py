"""What held-out documents are measured by: the groups of score columns, whichever of them a run was trained on.

What enters: opened shards, and the names, eta and ties that were asked for. What leaves: `Yardsticks`. Next:
`held_out.py` makes their groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from common.errors import raise_together
from common.shards import ShardDirectory
from common.thresholds import Ties


@dataclass(frozen=True)
class Yardsticks:
    """How held-out tokens get into groups; never permuted, and the same for every run that is to be compared."""

    columns: tuple[str, ...]  # importance columns
    eta: float
    ties: Ties


def plan_yardsticks(
    shards: Sequence[ShardDirectory], names: Sequence[str] | None, eta: float, ties: Ties
) -> Yardsticks:
    """Return the yardsticks `names`; by default every importance column that all the shard directories hold.

    Raises:
        UserError: a name that is no importance column of every directory.
    """
    if names is None:
        names = [
            name
            for name, kind in shards[0].columns.items()
            if kind == "importance" and all(other.columns.get(name) == kind for other in shards)
        ]
    problems = [problem for name in names for directory in shards if (problem := _problem(directory, name)) is not None]
    raise_together(problems)
    return Yardsticks(tuple(dict.fromkeys(names)), eta, ties)


def _problem(directory: ShardDirectory, name: str) -> str | None:
    kind = directory.columns.get(name)
    if kind == "importance":
        return None
    held = ", ".join(n for n, k in directory.columns.items() if k == "importance") or "none"
    if kind is None:
        return (
            f"--eval_groupers {name}: {directory.path} has no such score column (importance columns: {held}). Add it "
            f"with `annotate run --grouper {name} … --out {directory.path}`, or leave it out."
        )
    return (
        f"--eval_groupers {name}: holds a reference model's losses, and the groups of an excess loss are others for "
        f"every model; expected importance columns of {directory.path}: {held}."
    )
