"""From directories to one comparison, which every report shows.

What enters: directories of sweeps and runs, the baseline, columns. What leaves: a `Comparison`. Next: `findings.py`,
`reports/`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import UserError
from train.comparison.pairing import Difference, compare_points, values_of
from train.comparison.reading.benchmarks import read_benchmarks
from train.comparison.reading.columns import Column, is_loss, make_columns
from train.comparison.reading.costs import Cost, point_cost
from train.comparison.reading.curves import Curves, read_curves
from train.comparison.reading.documents import read_documents
from train.comparison.reading.points import Point, choose_baseline, make_points
from train.comparison.reading.pooling import Common, check_pool
from train.comparison.reading.runs import Unfinished, find_runs
from train.comparison.statistics.seeds import Summary, summarize


@dataclass
class Comparison:
    """All that a report shows."""

    directories: list[Path]
    points: list[Point]  # the baseline first, each control behind its point
    baseline: Point
    columns: list[Column]
    common: Common
    differences: list[Difference]
    unfinished: list[Unfinished]
    curves: dict[str, Curves]
    costs: list[Cost]
    draws: int | None
    seed: int
    _summaries: dict[tuple[str, str], Summary] = field(default_factory=dict)

    @property
    def main_columns(self) -> list[Column]:
        """Those of the main table; the first is the headline."""
        return [column for column in self.columns if column.table == "main"]

    @property
    def yardsticks(self) -> list[Column]:
        """Held-out losses by groups."""
        return [column for column in self.columns if column.table == "yardstick"]

    @property
    def headline(self) -> Column:
        """The column that findings and figures are about."""
        return self.columns[0]

    @property
    def figure_columns(self) -> list[Column]:
        """Those that are drawn: the headline, and the other losses of the main table."""
        others = [column for column in self.main_columns if is_loss(column) and column is not self.headline]
        return [self.headline, *others]

    def summary(self, point: Point, column: Column) -> Summary | None:
        """Return a point's mean, sd and interval in a column; None if it was not measured."""
        key = (point.name, column.key)
        if key not in self._summaries:
            values = values_of(point, column)
            if not values:
                return None
            self._summaries[key] = summarize(list(values.values()))
        return self._summaries[key]

    def difference(self, family: str, point: str, column: Column) -> Difference | None:
        """Return a comparison that was made."""
        return next((d for d in self.differences if (d.family, d.point, d.column) == (family, point, column)), None)

    def family(self, name: str) -> list[Difference]:
        """Return all comparisons of a table."""
        return [difference for difference in self.differences if difference.family == name]


def compare(
    directories: Sequence[Path],
    baseline: Sequence[str] = (),
    columns: Sequence[str] = (),
    draws: int | None = None,
    seed: int = 0,
) -> Comparison:
    """Read, check, compare.

    Raises:
        UserError: nothing to compare, runs that were not asked the same, an unknown baseline or column.
    """
    found = find_runs(directories)
    points = make_points(found.runs)
    documents = {run.directory: read_documents(run) for run in found.runs}
    benchmarks = {run.directory: read_benchmarks(run) for run in found.runs}
    common = check_pool(found.runs, documents, benchmarks)
    base = choose_baseline(points, baseline)
    made = make_columns(found.runs, documents, benchmarks, columns)
    if not any(column.table == "main" for column in made):
        raise UserError(
            f"{', '.join(map(str, directories))}: expected held-out losses (eval_documents.parquet; train with "
            f"--eval_fraction, or "
            "`train evaluate --shards`) or benchmark results (evaluation/; `train evaluate --suite paper`) beside the "
            "runs, found neither."
        )
    points = _ordered(points, base)
    return Comparison(
        directories=list(directories),
        points=points,
        baseline=base,
        columns=made,
        common=common,
        differences=compare_points(points, base, made, draws, seed),
        unfinished=found.unfinished,
        curves={point.name: read_curves(point) for point in points if not point.is_reference},
        costs=[point_cost(point) for point in points if not point.is_reference],
        draws=draws,
        seed=seed,
    )


def _ordered(points: Sequence[Point], baseline: Point) -> list[Point]:
    names = {point.name for point in points}
    ordered = [baseline]
    for point in points:
        if point is not baseline and point.control_of not in names:
            ordered.append(point)
            ordered += [other for other in points if other.control_of == point.name and other is not baseline]
    ordered += [other for other in points if other.control_of == baseline.name and other not in ordered]
    return ordered
