"""From a sweep's file to its points: the grid times the points, each with its control.

What enters: a `SweepFile`. What leaves: `Point`s with settings, name and control; sentences on what was taken together
and why; and problems. Next: `validation.py` parses each point as `train run` would, `state.py` writes them down.

A point's effective settings are those of its preset, under `base`, under its own. What its objective does not read is
left out of the point, so points that differ in nothing else are one.
"""

import dataclasses
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from common.errors import UserError
from train.objectives.reads import OF_GROUPS, has_groups, is_true, objective_flags, objective_name, unread_settings
from train.settings.arguments import OF_EVERY_OBJECTIVE
from train.settings.flags import DEFAULT_ETA
from train.settings.recipes import read_preset
from train.sweeps.file import SweepFile

CONTROL_SUFFIX = ".permuted"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,119}")


@dataclass(frozen=True)
class Point:
    """Settings without the seed."""

    name: str
    settings: dict[str, Any]  # flags of `train run`, base included, preset not resolved
    control_of: str | None = None  # the point whose permuted control this is


@dataclass
class _Candidate:
    own: dict[str, Any]  # what this point says beside the base
    name: str | None
    control: bool
    from_grid: tuple[str, ...]
    where: str
    unread: frozenset[str] = frozenset()

    def read(self) -> dict[str, Any]:
        return {name: value for name, value in self.own.items() if name not in self.unread}


def make_points(sweep: SweepFile) -> tuple[list[Point], list[str], list[str]]:
    """Return the points of a sweep in the file's order, each control behind its point; notes; and problems."""
    candidates: list[_Candidate] = []
    problems: list[str] = []
    notes: list[str] = []
    for candidate in _candidates(sweep):
        try:
            candidate.unread = unread_settings(effective(sweep.base, candidate.own))
            candidates.append(candidate)
        except UserError as error:  # no such preset
            problems.append(f"{'base' if 'preset' in sweep.base else candidate.where}: {error}")
    kept = _taken_together(candidates, notes)
    base = _with_one_yardstick(sweep.base, kept, notes)
    names = _names(sweep.base, kept)
    points = []
    for candidate, name in zip(kept, names, strict=True):
        settings = _settings(base, candidate)
        points.append(Point(name, settings))
        full = effective(sweep.base, candidate.own)
        if not (sweep.control and candidate.control) or is_true(full.get("permute_groups")):
            continue
        if has_groups(full):
            points.append(Point(name + CONTROL_SUFFIX, {**settings, "permute_groups": True}, name))
    return points, list(dict.fromkeys(notes)), [*dict.fromkeys(problems), *_name_problems(points)]


def effective(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return a point's settings with those of its preset under them, as `train run` would take them.

    Raises:
        UserError: there is no such preset.
    """
    given = {name: value for name, value in {**base, **own}.items() if value is not None}
    under = read_preset(str(given["preset"])) if "preset" in given else {}
    if "objective" in given and given["objective"] != under.get("objective"):
        of_an_objective = objective_flags().union(OF_EVERY_OBJECTIVE)
        under = {name: value for name, value in under.items() if name not in of_an_objective}
    return {**under, **given}


def _candidates(sweep: SweepFile) -> Iterator[_Candidate]:
    """Yield the points that were asked for: every one of `points` with every combination of `grid`."""
    grid = [[(name, value) for value in values] for name, values in sweep.grid.items()]
    for index, point in enumerate(sweep.points or [{}]):
        own = {name: value for name, value in point.items() if name not in ("name", "control")}
        for combination in itertools.product(*grid):
            yield _Candidate(
                own={**own, **dict(combination)},
                name=point.get("name"),
                control=point.get("control", True) is not False,
                from_grid=tuple(sweep.grid),
                where=f"points[{index}]" if sweep.points else "grid",
            )


def _taken_together(candidates: list[_Candidate], notes: list[str]) -> list[_Candidate]:
    """Return the first of the candidates that differ only in what their objective does not read."""
    kept: dict[str, _Candidate] = {}
    dropped: dict[str, list[_Candidate]] = {}
    for candidate in candidates:
        key = json.dumps(candidate.read(), sort_keys=True, default=str)
        kept.setdefault(key, candidate)
        dropped.setdefault(key, []).append(candidate)
    for key, same in dropped.items():
        if len(same) > 1:
            names = sorted({name for candidate in same for name in candidate.own if name in candidate.unread})
            objective = kept[key].own.get("objective", "the objective")
            notes.append(f"{objective}: does not read {', '.join(names)}, so {len(same)} points of the file are one.")
    return list(kept.values())


def _with_one_yardstick(base: dict[str, Any], candidates: list[_Candidate], notes: list[str]) -> dict[str, Any]:
    """Return `base` with an `eval_eta` where eta varies: held-out losses compare only over the same groups."""
    given = [effective(base, candidate.own) for candidate in candidates]
    etas = {settings.get("eta", DEFAULT_ETA) for settings in given}
    if len(etas) < 2 or any("eval_eta" in settings or not settings.get("eval_fraction") for settings in given):
        return base
    eta = base.get("eta", DEFAULT_ETA)
    notes.append(f"eta varies, so held-out losses are kept by the groups of one: eval_eta {eta}. `base` may give it.")
    return {**base, "eval_eta": eta}


def _settings(base: Mapping[str, Any], candidate: _Candidate) -> dict[str, Any]:
    """Return base and point in one, without what the objective does not read.

    Groups that the base names stay for an objective without groups: its curves are shown by them.
    """
    settings = {
        name: value for name, value in base.items() if name not in candidate.unread or name in OF_GROUPS[:3]
    } | candidate.read()
    return {name: value for name, value in settings.items() if value is not None}


def _names(base: Mapping[str, Any], candidates: list[_Candidate]) -> list[str]:
    """Name each point by what varies and what it reads: objective, grouper, then key and value."""
    reads = [candidate.read() for candidate in candidates]
    keys = list(dict.fromkeys(name for read in reads for name in read))
    varying = [
        key for key in keys if len({_shown(each.own.get(key)) for each in candidates if key not in each.unread}) > 1
    ]
    names = []
    for candidate, read in zip(candidates, reads, strict=True):
        parts = [candidate.name] if candidate.name else []
        for key in ("objective", "grouper"):
            if key in read and (candidate.name is None or key in candidate.from_grid):
                parts.append(_shown(read[key]))
        parts += [
            f"{key}{_shown(read[key])}"
            for key in varying
            if key in read and key not in ("objective", "grouper")
            if candidate.name is None or key in candidate.from_grid
        ]
        names.append("-".join(parts) or objective_name(effective(base, candidate.own)))
    return names


def _shown(value: Any) -> str:
    """Return a value as part of a directory's name."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return "+".join(map(_shown, value))
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", str(value)).strip("_.")


def _name_problems(points: list[Point]) -> list[str]:
    problems = []
    by_name: dict[str, list[Point]] = {}
    for point in points:
        by_name.setdefault(point.name.lower(), []).append(point)  # some file systems do not tell cases apart
        if not NAME.fullmatch(point.name):
            problems.append(
                f"point {point.name!r}: a name is a directory's: letters, digits, . _ + -, at most 120, a letter or "
                "digit first. Give it a `name`."
            )
        if point.name.endswith(CONTROL_SUFFIX) and point.control_of is None:
            problems.append(f"point {point.name!r}: {CONTROL_SUFFIX} is for the controls; give another name.")
    problems += [
        f"{len(same)} points have one name, {same[0].name}: give each its own `name`."
        for same in by_name.values()
        if len(same) > 1
    ]
    return problems


def words(settings: Mapping[str, Any]) -> list[str]:
    """Return settings as words of `train run`'s command line."""
    found: list[str] = []
    for name, value in settings.items():
        if value is None:
            continue
        values = value if isinstance(value, list) else [value]
        found += [f"--{name}", *map(_word, values)]
    return found


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value) if isinstance(value, dict) else str(value)


def as_json(point: Point) -> dict[str, Any]:
    """Return a point as `sweep.json` holds it."""
    return dataclasses.asdict(point)
