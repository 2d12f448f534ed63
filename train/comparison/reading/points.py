"""Runs become points: the same settings with several seeds.

What enters: `Run`s. What leaves: `Point`s in the order found, each control knowing what it controls, and the
baseline. Next: `pooling.py` checks that they may stand in one table.
"""

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from common.errors import UserError, raise_together
from train.comparison.reading.runs import Run
from train.comparison.reading.settings import flat_settings, point_settings, shown

CONTROL_SUFFIX = ".permuted"
FIRST = ("objective", "grouper", "eta")  # what a name is made of first
IN_EVERY_NAME = ("objective", "grouper")


@dataclass
class Point:
    """Settings without the seed, and their runs in the order of the seeds."""

    name: str
    settings: dict[str, Any]  # those that make a point
    runs: list[Run] = field(default_factory=list)
    control_of: str | None = None
    varying: dict[str, Any] = field(
        default_factory=dict
    )  # of the settings, those that differ between the points that read them

    @property
    def is_reference(self) -> bool:
        """Whether it is an evaluated checkpoint that no run of this project made."""
        return not any(run.content for run in self.runs)

    @property
    def series(self) -> str:
        """The objective with its column: points of one series differ in eta, lambda and the rest."""
        if self.is_reference:
            return self.name
        parts = [self.settings.get("objective"), self.settings.get("grouper")]
        return " ".join(str(part) for part in parts if part)


def make_points(runs: Sequence[Run]) -> list[Point]:
    """Group runs by the point they name, else by their settings.

    Raises:
        UserError: one name for several settings, or one seed twice.
    """
    points: dict[str, Point] = {}
    settings_of = {id(run): point_settings(run.content) for run in runs}
    doubled = _repeated([run for run in runs if run.point is None], settings_of)
    problems = []
    for run in runs:
        settings = settings_of[id(run)]
        key = run.point or (f"\0{run.directory}" if id(run) in doubled else f"\0{_text(settings)}")
        point = points.setdefault(key, Point(run.point or "", settings, [], run.control_of))
        if differing := _differing(point.settings, settings):
            problems.append(
                f"point {run.point}: {run.directory} and {point.runs[0].directory} have one name and other settings "
                f"({', '.join(differing)}). Compare them apart, or give them names of their own (--point)."
            )
        elif same := [other for other in point.runs if other.seed == run.seed]:
            problems.append(
                f"point {run.point}: seed {run.seed} is there twice, {same[0].directory} and {run.directory}. "
                f"Leave one out."
            )
        point.runs.append(run)
    raise_together(problems)
    ordered = list(points.values())
    _name(ordered, doubled)
    _find_controls(ordered)
    for point in ordered:
        point.runs.sort(key=lambda run: (run.seed is None, run.seed or 0))
    return ordered


def choose_baseline(points: Sequence[Point], wishes: Sequence[str]) -> Point:
    """Return the point that `--baseline` names, by its name or by settings (`objective=sft,learning_rate=1e-5`).

    Raises:
        UserError: none or several points fit.
    """
    candidates = [point for point in points if not point.is_reference]
    names = ", ".join(point.name for point in points)
    if not wishes:
        plain = [point for point in candidates if point.settings.get("objective") == "sft"]
        if len(plain) == 1:
            return plain[0]
        if len(points) <= 2:
            return points[0]
        found = "none" if not plain else ", ".join(point.name for point in plain)
        raise UserError(f"--baseline: expected one point to compare with; objective=sft fits {found}. Points: {names}.")
    for wish in wishes:
        if exact := [point for point in points if point.name == wish]:
            return exact[0]
    pairs = [pair for wish in wishes for pair in wish.split(",")]
    known = {name for point in candidates for name in flat_settings(point.runs[0].content)}
    problems = []
    for pair in pairs:
        key, equals, _ = pair.partition("=")
        if not equals or key not in known:
            near = difflib.get_close_matches(key, [*known, *(point.name for point in points)], 1)
            hint = f" Did you mean {near[0]}?" if near else ""
            problems.append(
                f"--baseline {pair}: expected the name of a point or setting=value; found neither.{hint} Points: "
                f"{names}."
            )
    raise_together(problems)
    fitting = [point for point in candidates if all(_fits(point, *pair.partition("=")[::2]) for pair in pairs)]
    plain = [point for point in fitting if point.control_of is None]
    fitting = plain if len(plain) == 1 else fitting
    if len(fitting) != 1:
        which = "none" if not fitting else ", ".join(point.name for point in fitting)
        raise UserError(
            f"--baseline {' '.join(wishes)}: expected one point, found {which}. Points: {names}. Give a name, or "
            f"more settings."
        )
    return fitting[0]


def _fits(point: Point, key: str, value: str) -> bool:
    have = flat_settings(point.runs[0].content).get(key)
    if isinstance(have, int | float) and not isinstance(have, bool):
        try:
            return float(have) == float(value)
        except ValueError:
            return False
    return shown(have) == value.lower() or str(have) == value


def _repeated(runs: Sequence[Run], settings_of: dict[int, dict]) -> set[int]:
    """Return the runs whose settings and seed another run has too: each is a point on its own, by its directory."""
    by_key: dict[str, list[int]] = {}
    for run in runs:
        by_key.setdefault(_text([settings_of[id(run)], run.seed]), []).append(id(run))
    twice = {_text(settings_of[i]) for same in by_key.values() if len(same) > 1 for i in same}
    return {id(run) for run in runs if _text(settings_of[id(run)]) in twice}


def _name(points: Sequence[Point], doubled: set[int]) -> None:
    """Say what differs between the points, and name those that have no name by it."""
    keys = list(dict.fromkeys(key for point in points for key in point.settings))
    trained = [point for point in points if not point.is_reference]
    values = {key: {_text(p.settings[key]) for p in trained if p.settings.get(key) is not None} for key in keys}
    varying = [key for key in keys if len(values[key]) > 1 or (key in FIRST and values[key])]
    varying.sort(key=lambda key: (FIRST.index(key) if key in FIRST else len(FIRST), key))
    for point in points:
        point.varying = {key: point.settings[key] for key in varying if point.settings.get(key) is not None}
        if point.name:
            continue
        if id(point.runs[0]) in doubled:
            point.name = point.runs[0].directory.name
            continue
        parts = [shown(point.settings[key]) for key in IN_EVERY_NAME if point.settings.get(key)]
        parts += [f"{key}{shown(value)}" for key, value in point.varying.items() if key not in IN_EVERY_NAME]
        point.name = "-".join(parts)
    taken: dict[str, int] = {}
    for point in points:
        taken[point.name] = taken.get(point.name, 0) + 1
    for point in points:
        if taken[point.name] > 1:
            point.name = str(point.runs[0].directory)


def _find_controls(points: Sequence[Point]) -> None:
    """Find what a permuted point controls where no sweep says it: the point with the same settings otherwise."""
    for point in points:
        if point.control_of or not point.settings.get("permute_groups"):
            continue
        own = {key: value for key, value in point.settings.items() if key != "permute_groups"}
        for other in points:
            theirs = {key: value for key, value in other.settings.items() if key != "permute_groups"}
            if other is not point and not other.settings.get("permute_groups") and own == theirs:
                point.control_of = other.name


def _differing(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    return sorted(
        f"{key}: {shown(first.get(key))} and {shown(second.get(key))}"
        for key in {*first, *second}
        if _text(first.get(key)) != _text(second.get(key))
    )


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
