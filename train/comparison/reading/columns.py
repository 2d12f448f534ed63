"""The columns of the tables: for each, the measure of every run that has it.

What enters: runs, their held-out documents and benchmarks. What leaves: `Column`s, those of the main table first and
the headline first of all. Next: `comparison.py` fills the tables.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.errors import raise_together
from train.comparison.reading.benchmarks import Benchmarks, benchmark_measures
from train.comparison.reading.documents import Documents, document_measures
from train.comparison.reading.runs import Run
from train.comparison.statistics.measures import Measure

LOSS = "loss"
PERCENT = 100.0
# metrics of lm-evaluation-harness that are better when they are lower
LOWER = ("perplexity", "bits_per_byte", "loss", "brier", "ter")


Held = Mapping[Path, Mapping[tuple[str, str], Measure]]  # of one set of documents, by the run's directory


@dataclass(frozen=True)
class Column:
    """One question that runs were asked."""

    key: str
    title: str
    table: Literal["main", "yardstick"]
    better: Literal["lower", "higher"]
    unit: str
    scale: float  # a shown number is the value times this
    digits: int
    measures: dict[Path, Measure]  # by the run's directory

    @property
    def num_items(self) -> int:
        """Items, or groups of them that belong together; 0 where they are not known."""
        return max((sum(len(part.contributions) for part in m.parts) for m in self.measures.values()), default=0)


def make_columns(
    runs: Sequence[Run],
    documents: Mapping[Path, Mapping[str, Documents]],
    benchmarks: Mapping[Path, Benchmarks],
    wanted: Sequence[str] = (),
) -> list[Column]:
    """Return all columns, the headline first; with `wanted` keys or titles, those of the main table that it names.

    Raises:
        UserError: an unknown column.
    """
    held = {
        name: {place: document_measures(sets[name]) for place, sets in documents.items() if name in sets}
        for name in sorted({name for sets in documents.values() for name in sets})
    }
    results = {place: benchmark_measures(one) for place, one in benchmarks.items()}
    main = []
    names = list(dict.fromkeys(name for run in runs for name in results.get(run.directory, ())))
    names.sort(key=lambda name: (name[0] == "", name[0], name[1] != "average"))  # an average leads its suite
    several = len({suite for suite, _ in names if suite}) > 1
    for suite, name in names:
        measures = {run.directory: m for run in runs if (m := results[run.directory].get((suite, name)))}
        main.append(_benchmark(suite, name, measures, several))
    losses = [_loss(name, "", ("", "all"), measures) for name, measures in held.items()]
    averages = [column for column in main if column.key.endswith("/average")]
    headline = next(iter([*averages, *losses, *main]), None)
    main += losses
    main.sort(key=lambda column: column is not headline)  # stable
    if wanted:
        main = _choose(main, wanted)
    return main + [column for name, measures in held.items() for column in _yardsticks(name, measures)]


def is_loss(column: Column) -> bool:
    """Return whether a column is the loss of all tokens of a set of held-out documents."""
    return column.table == "main" and column.key.partition("@")[0] == LOSS


def _yardsticks(name: str, held: Held) -> list[Column]:
    labels = dict.fromkeys(label for measures in held.values() for label, _ in measures if label)
    keys = [(label, group) for label in labels for group in ("important", "unimportant", "worst")]
    return [column for key in keys if (column := _loss(name, f"/{'/'.join(key)}", key, held)).measures]


def _loss(name: str, ending: str, key: tuple[str, str], held: Held) -> Column:
    """Return a column of one set of held-out documents: `loss`, `loss@lima`, `loss@lima/tfidf, eta 0.7/important`."""
    measures = {place: each[key] for place, each in held.items() if key in each}
    label, group = key
    title = f"{label}: {group}" if label else "Held-out loss"
    table = "yardstick" if label else "main"
    title, set_key = (f"{title}, {name}", f"{LOSS}@{name}") if name else (title, LOSS)
    return Column(set_key + ending, title, table, "lower", "nats/token", 1.0, 4, measures)


def _benchmark(suite: str, name: str, measures: dict[Path, Measure], several: bool) -> Column:
    key = f"{suite}/{name}" if suite else name
    title = {"average": "Average"}.get(name, name) + (f" ({suite})" if suite and several else "")
    finite = [measure.value for measure in measures.values() if measure.value == measure.value]
    is_share = all(0.0 <= value <= 1.0 for value in finite)
    better = "lower" if any(word in name for word in LOWER) else "higher"
    unit, scale, digits = ("%", PERCENT, 2) if is_share else ("", 1.0, 3)
    return Column(key, title, "main", better, unit, scale, digits, measures)


def _choose(columns: Sequence[Column], wanted: Sequence[str]) -> list[Column]:
    by_name = {name.lower(): column for column in columns for name in (column.title, column.key)}
    problems, chosen = [], []
    for name in wanted:
        if column := by_name.get(name.lower()):
            chosen.append(column)
            continue
        near = difflib.get_close_matches(name.lower(), by_name, 1)
        hint = f" Did you mean {by_name[near[0]].key}?" if near else ""
        problems.append(
            f"--columns {name}: expected one of {', '.join(column.key for column in columns)}; found no such.{hint}"
        )
    raise_together(problems)
    return chosen
