"""The curves of figures 1 and 2: each group's training loss over the steps, mean and standard deviation over seeds.

What enters: `metrics.jsonl` of a point's runs. What leaves: a `Curves` with at most `MOST` steps. Next:
`figures/curves.py`.

Steps where a run says NaN are None in the mean: a mean over the other seeds would hide it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from train.comparison.reading.points import Point
from train.comparison.reading.runs import METRICS_NAME, read_lines

MOST = 160  # steps of a curve in a report; more are averaged in equal stretches
NAMES = {"loss_important": "important", "loss_unimportant": "unimportant"}
ALL = "loss_all"


@dataclass
class Curve:
    """One line: a loss over the steps."""

    label: str
    mean: list[float | None]
    sd: list[float | None]


@dataclass
class Curves:
    """A point's curves; steps are those that every one of its runs logged."""

    steps: list[int] = field(default_factory=list)
    lines: list[Curve] = field(default_factory=list)
    worst_important: list[float | None] = field(default_factory=list)  # share of steps × seeds, 0 to 1
    num_seeds: int = 0
    num_non_finite: int = 0  # runs with a NaN in any curve
    switches: list[dict | None] = field(default_factory=list)  # each run's {"count", "share_of_steps"}


def read_curves(point: Point) -> Curves:
    """Return the curves of a point."""
    histories = []
    for run in point.runs:
        path = run.directory / METRICS_NAME
        lines = read_lines(path) if path.is_file() else []
        histories.append({entry["step"]: entry for entry in lines if ALL in entry and "step" in entry})
    switches = [
        run.content.get("worst_group_switches") or _switches(history)
        for run, history in zip(point.runs, histories, strict=True)
    ]
    histories = [history for history in histories if history]
    if not histories:
        return Curves(switches=[run.content.get("worst_group_switches") for run in point.runs])
    steps = sorted(set.intersection(*(set(history) for history in histories)))
    names = _lines(histories)
    found = Curves(num_seeds=len(histories), switches=switches)
    starts = _starts(steps)
    found.steps = [int(stretch[-1]) for stretch in np.split(np.array(steps, dtype=np.int64), starts)]
    bad = np.zeros(len(histories), dtype=bool)
    for name in names:
        values = np.array([[_number(history[step].get(name)) for step in steps] for history in histories])
        bad |= ~np.isfinite(values).all(axis=1) & np.array(
            [any(name in entry for entry in h.values()) for h in histories]
        )
        binned = _binned(values, starts)
        sd = binned.std(axis=0, ddof=1) if len(histories) > 1 else np.full(binned.shape[1], np.nan)
        found.lines.append(Curve(NAMES.get(name, _label(name)), _listed(binned.mean(axis=0)), _listed(sd)))
    if any("worst_group" in entry for history in histories for entry in history.values()):
        worst = np.array([[_number(history[step].get("worst_group")) for step in steps] for history in histories])
        found.worst_important = _listed(_binned(worst, starts).mean(axis=0))
    found.num_non_finite = int(bad.sum())
    return found


def _switches(history: dict[int, dict]) -> dict[str, float] | None:
    """Count the switches of the worst group in a log of every step, for runs that do not say them."""
    steps = sorted(history)
    worst = [history[step].get("worst_group") for step in steps]
    if len(steps) < 2 or steps != list(range(steps[0], steps[0] + len(steps))) or None in worst:
        return None
    count = sum(a != b for a, b in pairwise(worst))
    return {"count": count, "share_of_steps": count / (len(steps) - 1)}


def _lines(histories: Sequence[dict]) -> list[str]:
    names = dict.fromkeys(name for history in histories for entry in history.values() for name in entry)
    groups = [name for name in names if name in NAMES or name.startswith("loss_group_")]
    return sorted(groups, key=lambda name: (name not in NAMES, name)) or [ALL]


def _label(name: str) -> str:
    return "all tokens" if name == ALL else name.removeprefix("loss_").replace("_", " ")


def _starts(steps: Sequence[int]) -> np.ndarray:
    """Return where each stretch but the first begins."""
    stretches = min(len(steps), MOST)
    return (np.arange(1, stretches) * len(steps) / stretches).astype(np.int64) if stretches else np.array([], np.int64)


def _binned(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    edges = np.concatenate([[0], starts])
    counts = np.diff(np.concatenate([edges, [values.shape[1]]]))
    return np.add.reduceat(values, edges, axis=1) / counts


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _listed(values: np.ndarray) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]
