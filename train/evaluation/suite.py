"""What a suite asks: columns, and for each the tasks, shots and metrics that it is the mean of.

What enters: `paper`, or a YAML file like `suites/paper.yaml`. What leaves: a `Suite`, checked as far as it can be
without the harness. Next: `tasks.py` finds the tasks, and `results.py` makes columns of what they gave.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError, raise_together
from common.hints import did_you_mean

SHIPPED = Path(__file__).with_name("suites")
KEYS = {"task", "shots", "metrics"}


@dataclass(frozen=True)
class Asked:
    """One task as it is asked: the same for every checkpoint that is to be compared."""

    task: str  # a task or group of the harness
    shots: int | None = None  # None: the task's own


@dataclass(frozen=True)
class Suite:
    """Columns by name; each is the mean of its metrics."""

    name: str
    columns: Mapping[str, tuple[tuple[Asked, str], ...]]  # (what is asked, metric) of each column

    def asked(self) -> list[Asked]:
        """Return what is to be asked, each once, in the order of the columns."""
        return list(dict.fromkeys(asked for parts in self.columns.values() for asked, _ in parts))

    def headline(self, asked: Asked) -> str:
        """Return the first metric that a column takes of a task."""
        return next(metric for parts in self.columns.values() for other, metric in parts if other == asked)

    def values(self, metrics: Mapping[Asked, Mapping[str, float]]) -> dict[str, float | None]:
        """Return each column's value from the tasks' metrics; None where one is still to come, NaN where one is NaN."""
        return {
            column: math.fsum(metrics[asked][metric] for asked, metric in parts) / len(parts)
            if all(asked in metrics for asked, _ in parts)
            else None
            for column, parts in self.columns.items()
        }

    def only(self, columns: Sequence[str]) -> "Suite":
        """Return the suite with these columns alone.

        Raises:
            UserError: there is no such column.
        """
        raise_together(
            [
                f"--columns {name}: suite {self.name} has no such column; its columns: {', '.join(self.columns)}."
                f"{did_you_mean(name, self.columns)}"
                for name in columns
                if name not in self.columns
            ]
        )
        return Suite(self.name, {name: parts for name, parts in self.columns.items() if name in columns})


def load_suite(name: str) -> Suite:
    """Read a suite by the name of a shipped one or the path of a file.

    Raises:
        UserError: there is none, or it says something that is not understood; with everything that is wrong.
    """
    shipped = {path.stem: path for path in sorted(SHIPPED.glob("*.yaml"))}
    path = shipped.get(name, Path(name))
    if not path.is_file():
        raise UserError(
            f"--suite {name}: expected {' or '.join(shipped)}, or a YAML file of columns with their tasks; found none."
            f"{did_you_mean(name, shipped)} The shipped one shows the form: {shipped['paper']}."
        )
    columns = _read(path)
    problems, made = [], {}
    for column, entry in columns.items():
        parts = []
        for part in entry if isinstance(entry, list) else [entry]:
            problem = _problem(part)
            if problem:
                problems.append(f"--suite {path}: column {column!r}: {problem}")
                continue
            asked = Asked(part["task"], part.get("shots"))
            parts += [(asked, metric) for metric in part["metrics"]]
        made[str(column)] = tuple(parts)
    raise_together(problems)
    return Suite(path.stem, made)


def _read(path: Path) -> dict[str, Any]:
    import yaml

    class Loader(yaml.SafeLoader):
        """PyYAML keeps the last of two equal keys without a word."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict:
            names = [self.construct_object(key, deep=True) for key, _ in node.value]
            for name in names:
                if names.count(name) > 1:
                    raise yaml.constructor.ConstructorError(None, None, f"{name!r} stands there twice", node.start_mark)
            return super().construct_mapping(node, deep)

    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"--suite {path}: expected YAML ({error}).") from error
    columns = content.get("columns") if isinstance(content, dict) else None
    if not isinstance(columns, dict) or not columns or set(content) != {"columns"}:
        raise UserError(
            f"--suite {path}: expected one key, columns, with at least one column under it, such as "
            "`ARC-C: {task: arc_challenge, shots: 0, metrics: [acc_norm]}`."
        )
    return columns


def _problem(part: Any) -> str | None:
    if not isinstance(part, dict) or not {"task", "metrics"} <= set(part):
        return f"expected task, metrics and, if you like, shots (or a list of such); found {part!r}."
    if extra := set(part) - KEYS:
        return f"unknown: {', '.join(sorted(map(str, extra)))}; expected {', '.join(sorted(KEYS))}."
    if not isinstance(part["task"], str):
        return f"expected the name of a task of the harness, found {part['task']!r}."
    shots, metrics = part.get("shots"), part["metrics"]
    if shots is not None and (not isinstance(shots, int) or isinstance(shots, bool) or shots < 0):
        return f"shots: expected a whole number of at least 0, found {shots!r}."
    if not isinstance(metrics, list) or not metrics or not all(isinstance(metric, str) for metric in metrics):
        return f"metrics: expected a list of the task's metrics, such as [acc_norm], found {metrics!r}."
    return None
