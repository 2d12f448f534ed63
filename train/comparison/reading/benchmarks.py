"""The benchmarks of a run: what `train evaluate` left in `evaluation/`, item by item.

What enters: `evaluation/<task>.json` and `evaluation/suite-<name>.json`. What leaves: a measure for every column of the
suites, for their average, and for every task that is in no suite. Next: `columns.py`.

A task's items give its value again (their mean, or right answers over questions where an item has several, as IFEval's
instructions); a column whose parts a suite does not say, or that is no such mean (corpus BLEU), has a value and no items: its
interval is over seeds alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.files import read_json
from train.comparison.reading.runs import EVALUATION_NAME, Run
from train.comparison.statistics.measures import Measure, combine, ratio

SUITE_PREFIX = "suite-"
SAME = 1e-6  # between a metric and what its items give
ASKED = ("version", "num_fewshot", "limit")  # what makes two results of a task comparable


@dataclass
class Benchmarks:
    """One run's results."""

    directory: Path
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)  # file name without .json: content
    suites: dict[str, dict[str, Any]] = field(default_factory=dict)

    def asked(self, name: str) -> dict[str, Any]:
        """Return what tells whether two results of a task answer the same questions."""
        task = self.tasks[name]
        return {**{key: task.get(key) for key in ASKED}, "items": [item.get("id") for item in task.get("items", [])]}


def read_benchmarks(run: Run) -> Benchmarks:
    """Read all results beside a run.

    Raises:
        UserError: a file that is not one that `train evaluate` writes.
    """
    found = Benchmarks(run.directory / EVALUATION_NAME)
    for path in sorted(found.directory.glob("*.json")) if found.directory.is_dir() else ():
        content = read_json(path)
        expected = "columns" if path.name.startswith(SUITE_PREFIX) else "metrics"
        if not isinstance(content, dict) or not isinstance(content.get(expected), dict):
            raise UserError(f"{path}: expected a result of `train evaluate` with {expected!r}; evaluate again.")
        if path.name.startswith(SUITE_PREFIX):
            found.suites[content.get("suite") or path.stem.removeprefix(SUITE_PREFIX)] = content
        else:
            found.tasks[path.stem] = content
    return found


def benchmark_measures(benchmarks: Benchmarks) -> dict[tuple[str, str], Measure]:
    """Return {(suite or "", column): measure}, a suite's average under "average"."""
    measures: dict[tuple[str, str], Measure] = {}
    used: set[str] = set()
    for suite, content in benchmarks.suites.items():
        parts: Mapping[str, list[dict[str, Any]]] = content.get("parts") or {}
        columns = {}
        for column, value in content["columns"].items():
            used |= {part["task"] for part in parts.get(column, [])}
            columns[column] = _column(benchmarks, parts.get(column), _number(value))
        measures |= {(suite, column): measure for column, measure in columns.items()}
        if len(columns) > 1:
            average = combine([(1.0 / len(columns), measure) for measure in columns.values()])
            stated = _number(content.get("average"))
            measures[suite, "average"] = average if _close(average.value, stated) else Measure(stated)
    in_suites = {task.get("suite") for task in benchmarks.tasks.values()} & set(benchmarks.suites)
    for name, task in benchmarks.tasks.items():
        if name not in used and task.get("suite") not in in_suites:
            measures["", name] = task_measure(task, task.get("headline"), name)
    return measures


def task_measure(task: Mapping[str, Any], metric: str | None, item_set: str) -> Measure:
    """Return the measure of one metric of a task; without parts where its items do not give the value."""
    value = _number(task["metrics"].get(metric))
    items = [item.get(metric) for item in task.get("items", [])]
    if not items or any(item is None for item in items):
        return Measure(value)
    answers = [item if isinstance(item, list) else [item] for item in items]
    groups = [item.get("group") for item in task["items"]]
    measure = ratio(item_set, np.array([sum(a) for a in answers]), np.array([len(a) for a in answers]), groups)
    return measure if _close(measure.value, value) or np.isnan(value) else Measure(value)


def _column(benchmarks: Benchmarks, parts: list[dict[str, Any]] | None, value: float) -> Measure:
    if not parts or any(part["task"] not in benchmarks.tasks for part in parts):
        return Measure(value)
    total = sum(part.get("weight", 1.0) for part in parts)
    measure = combine(
        [
            (
                part.get("weight", 1.0) / total,
                task_measure(
                    benchmarks.tasks[part["task"]],
                    part.get("metric") or benchmarks.tasks[part["task"]].get("headline"),
                    part["task"],
                ),
            )
            for part in parts
        ]
    )
    return measure if _close(measure.value, value) else Measure(value)


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _close(first: float, second: float) -> bool:
    return abs(first - second) <= SAME * max(1.0, abs(second))
