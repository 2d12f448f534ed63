"""The benchmarks of a run: what `train evaluate` left in `evaluation/`, item by item.

What enters: `evaluation/<task>.json` and `evaluation/suite-<name>.json`. What leaves: a measure for every column of the
suites, for their average, and for every task that is in no suite. Next: `columns.py`.

A suite's column is the mean of the metrics that it is made of. An item may hold several answers (IFEval counts
instructions, and a prompt has one to three): they are drawn together. Where the mean of a task's answers is not the
metric itself but near it, the items say how it varies and the metric where it is; a metric that is no mean of items at
all (corpus BLEU) has a value and no items, and its interval is over seeds alone.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.files import read_json
from train.comparison.reading.runs import EVALUATION_NAME, Run
from train.comparison.statistics.measures import Measure, Part, combine, ratio

SUITE_PREFIX = "suite-"
NEAR = 0.05  # between a metric and the mean of its items
SAME = 1e-6  # between an average and the mean of its columns
ASKED = ("version", "num_fewshot", "limit", "data", "apply_chat_template")  # what makes two results comparable


@dataclass
class Benchmarks:
    """One run's results."""

    directory: Path
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)  # file name without .json: content
    suites: dict[str, dict[str, Any]] = field(default_factory=dict)

    def asked(self, name: str) -> dict[str, Any]:
        """Return what tells whether two results of a task answer the same questions."""
        task = self.tasks[name]
        return {
            **{key: task.get(key) for key in ASKED},
            "items": [(item.get("id"), item.get("group")) for item in task.get("items", [])],
        }


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
        made_of: Mapping[str, list[dict[str, Any]]] = content.get("made_of") or {}
        columns = {}
        for column, value in content["columns"].items():
            parts = made_of.get(column, [])
            used |= {_file(part) for part in parts}
            columns[column] = _column(benchmarks, parts, _number(value))
        measures |= {(suite, column): measure for column, measure in columns.items()}
        if len(columns) > 1 and "average" in content and content["average"] is not None:
            average = combine([(1.0 / len(columns), measure) for measure in columns.values()])
            stated = _number(content["average"])
            measures[suite, "average"] = average if _close(average.value, stated) else Measure(stated)
    in_suites = {task.get("suite") for task in benchmarks.tasks.values()} & set(benchmarks.suites)
    for name, task in benchmarks.tasks.items():
        if name not in used and task.get("suite") not in in_suites:
            measures["", name] = task_measure(task, task.get("headline"))
    return measures


def task_measure(task: Mapping[str, Any], metric: str | None) -> Measure:
    """Return the measure of one metric of a task; without parts where its items do not give the value."""
    value = _number(task["metrics"].get(metric))
    items = [item.get(metric) for item in task.get("items", [])]
    if not items or any(item is None for item in items):
        return Measure(value)
    answers = [item if isinstance(item, list) else [item] for item in items]
    groups = [item.get("group") for item in task["items"]]
    name = _item_set(task)
    measure = ratio(name, np.array([sum(a) for a in answers]), np.array([len(a) for a in answers]), groups)
    if np.isnan(measure.value) or np.isnan(value) or not measure.parts:
        return Measure(value)
    if abs(measure.value - value) > NEAR:
        return Measure(value)
    part = measure.parts[0]
    moved = part.contributions + (value - measure.value) / len(part.contributions)
    return Measure(value, (Part(name, moved, part.influences),))


def _item_set(task: Mapping[str, Any]) -> str:
    """Return a name that tasks over the same questions share, such as one with other shots: drawn, they are drawn
    together."""
    ids = "\n".join(str(item.get("id")).rpartition("-")[0] or str(item.get("id")) for item in task["items"])
    return f"{task.get('data') or task.get('task')} {zlib.crc32(ids.encode()):08x}"


def _column(benchmarks: Benchmarks, parts: list[dict[str, Any]], value: float) -> Measure:
    if not parts or any(_file(part) not in benchmarks.tasks for part in parts):
        return Measure(value)
    measure = combine(
        [(1.0 / len(parts), task_measure(benchmarks.tasks[_file(part)], part["metric"])) for part in parts]
    )
    return measure if _close(measure.value, value) else Measure(value)


def _file(part: Mapping[str, Any]) -> str:
    return str(part["file"]).removesuffix(".json")


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _close(first: float, second: float) -> bool:
    return abs(first - second) <= SAME * max(1.0, abs(second))
