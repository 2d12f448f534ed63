"""Which comparisons a report makes, and their numbers.

What enters: points and columns. What leaves: `Difference`s by family. A family is a table, and Holm's correction goes
over it: `baseline` (every point against the baseline, every column of the main table), `control` (every point against
its own permuted control), `yardstick` (held-out losses by groups, against the baseline), `lambda` (settings of lambda
against each other). Next: `findings.py` says it in words, `reports/` shows it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from train.comparison.reading.columns import Column
from train.comparison.reading.points import Point
from train.comparison.reading.settings import shown
from train.comparison.statistics.differences import DRAWS, Estimate, Pairs, estimate
from train.comparison.statistics.holm import holm
from train.comparison.statistics.measures import Measure

ALPHA = 0.05
DRAWS_PER_COMPARISON = 40  # so that the smallest p, times the table's comparisons, is half of ALPHA at most
OF_LAMBDA = ("lambda_max", "lambda_min")


@dataclass(frozen=True)
class Difference:
    """One comparison: point − against, in one column."""

    family: str
    point: str
    against: str
    column: Column
    seeds: tuple[int, ...]
    estimate: Estimate
    p_holm: float | None
    family_size: int
    note: str = ""

    @property
    def gain(self) -> float | None:
        """The difference in the direction that is better: above 0 is an improvement."""
        value = self.estimate.difference
        return value if value is None or self.column.better == "higher" else -value

    @property
    def holds(self) -> bool:
        """Whether it stands in its table: the corrected p is below 5 %, and the interval leaves 0 out."""
        e = self.estimate
        return self.p_holm is not None and self.p_holm < ALPHA and e.covers == "both" and not e.low <= 0.0 <= e.high

    @property
    def detectable(self) -> float | None:
        """The smallest true difference that this comparison alone would have found with a chance of 80 %."""
        return self.estimate.detectable()

    @property
    def detectable_in_table(self) -> float | None:
        """The same as the first of its table: at 5 % shared by all of its comparisons."""
        return self.estimate.detectable(num_comparisons=max(self.family_size, 1))


def compare_points(
    points: Sequence[Point], baseline: Point, columns: Sequence[Column], draws: int | None = None, seed: int = 0
) -> list[Difference]:
    """Return the differences of all families."""
    wanted: list[tuple[str, Point, Point, Column]] = []
    by_name = {point.name: point for point in points}
    main = [column for column in columns if column.table == "main"]
    yardsticks = [column for column in columns if column.table == "yardstick"]
    others = [point for point in points if point is not baseline]
    wanted += [("baseline", point, baseline, column) for point in others for column in main]
    controlled = [point for point in points if point.control_of in by_name]
    wanted += [("control", by_name[c.control_of], c, column) for c in controlled for column in (*main, *yardsticks)]
    wanted += [("yardstick", point, baseline, column) for point in others for column in yardsticks]
    for family in lambda_families(points):
        wanted += [("lambda", point, family[0], column) for point in family[1:] for column in main[:1]]
    made = [(family, a, b, column, *pair_up(a, b, column, len(points) == 2)) for family, a, b, column in wanted]
    made = [row for row in made if row[4] is not None or row[5]]
    sizes = {family: sum(row[0] == family for row in made) for family in dict.fromkeys(row[0] for row in made)}
    draws = draws or max(DRAWS, DRAWS_PER_COMPARISON * max(sizes.values(), default=0))
    real = [row for row in made if row[4] is not None]
    estimates = iter(estimate([row[4] for row in real], draws, seed))
    nothing = Estimate((), None, None, None, None, None, None, 0)
    rows = [
        Difference(
            family,
            a.name,
            b.name,
            column,
            pairs.seeds if pairs else (),
            next(estimates) if pairs else nothing,
            None,
            0,
            note,
        )
        for family, a, b, column, pairs, note in made
    ]
    return _corrected(rows)


def pair_up(first: Point, second: Point, column: Column, alone: bool) -> tuple[Pairs | None, str]:
    """Return both points' measures by the seeds that they share, and what is to be said of it.

    None where they share no seed, or where one was not measured: then no difference is a paired one. Two runs `alone`
    in a report are set against each other whatever their seeds. An evaluated checkpoint without a seed stands against
    each seed.
    """
    mine, theirs = _by_seed(first, column), _by_seed(second, column)
    if not mine or not theirs:
        return None, ""
    if None in mine or None in theirs:
        seeds = [seed for seed in (*mine, *theirs) if seed is not None] or [None]
        mine, theirs = (dict.fromkeys(seeds, have[None]) if None in have else have for have in (mine, theirs))
        return _pairs(mine, theirs, seeds), "one checkpoint against every seed"
    seeds = [seed for seed in mine if seed in theirs]
    if not seeds and alone and len(mine) == len(theirs) == 1:
        (seed, own), (other, their) = *mine.items(), *theirs.items()
        pairs = Pairs((seed,), (own,), (their,))
        return pairs, f"seeds {seed} and {other}: what the seed does is part of the difference"
    if not seeds:
        return None, "no seed in common"
    left = len({*mine, *theirs}) - len(seeds)
    return _pairs(
        mine, theirs, seeds
    ), f"{left} run{'s' if left > 1 else ''} without a partner left out" if left else ""


def lambda_families(points: Sequence[Point]) -> list[list[Point]]:
    """Return groups of points that differ in nothing but lambda, the largest constant one first."""
    families: dict[str, list[Point]] = {}
    for point in points:
        if point.is_reference or point.settings.get("lambda_max") is None:
            continue
        rest = {key: value for key, value in point.settings.items() if key not in OF_LAMBDA}
        families.setdefault(repr(sorted((key, shown(value)) for key, value in rest.items())), []).append(point)
    return [
        sorted(
            family, key=lambda p: (p.settings["lambda_max"] != p.settings.get("lambda_min"), -p.settings["lambda_max"])
        )
        for family in families.values()
        if len(family) > 1 and family[0].control_of is None
    ]


def lambda_label(point: Point) -> str:
    """Return lambda as a reader takes it: constant, or from where to where."""
    largest, smallest = point.settings.get("lambda_max"), point.settings.get("lambda_min")
    if largest is None:
        return "–"
    return f"{largest:g}" if smallest in (None, largest) else f"{largest:g} → {smallest:g}"


def _by_seed(point: Point, column: Column) -> dict[int | None, Measure]:
    return {run.seed: column.measures[run.directory] for run in point.runs if run.directory in column.measures}


def _pairs(mine: dict, theirs: dict, seeds: Sequence) -> Pairs:
    return Pairs(tuple(seeds), tuple(mine[seed] for seed in seeds), tuple(theirs[seed] for seed in seeds))


def _corrected(rows: list[Difference]) -> list[Difference]:
    corrected = list(rows)
    for family in dict.fromkeys(row.family for row in rows):
        tested = [index for index, row in enumerate(rows) if row.family == family and row.estimate.p is not None]
        for index, p in zip(tested, holm([rows[i].estimate.p for i in tested]), strict=True):
            corrected[index] = replace(rows[index], p_holm=p, family_size=len(tested))
    return corrected


def values_of(point: Point, column: Column) -> dict[int | None, float]:
    """Return a point's values in a column by seed."""
    return {seed: measure.value for seed, measure in _by_seed(point, column).items()}


def non_finite_seeds(point: Point, column: Column) -> list[int | None]:
    """Return the seeds whose value is NaN or infinite."""
    return [seed for seed, value in values_of(point, column).items() if not np.isfinite(value)]
