"""The sweep's file: what is varied, over what, with which seeds.

What enters: `SWEEP.yaml` and the `--set key=value` of the command line. What leaves: a `SweepFile`, and sentences for
everything about its form that is wrong. Next: `points.py` makes points of it. Imports nothing heavy.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.hints import did_you_mean

KEYS = ("base", "seeds", "grid", "points", "control")
# Flags of `train run` that the sweep itself gives, and who decides instead.
OWN_FLAGS = {
    "output_dir": "each run has its own directory, DIR/runs/<point>/<seed>",
    "seed": "give `seeds`",
    "point": "give `name` in a point",
    "resume_from_checkpoint": "an unfinished run always goes on from its newest checkpoint",
    "config": "write its settings under `base`",
    "address": "give --address to `train sweep`",
}


@dataclass
class SweepFile:
    """A sweep as it was written, with `--set` applied."""

    base: dict[str, Any] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=list)
    grid: dict[str, list[Any]] = field(default_factory=dict)
    points: list[dict[str, Any]] = field(default_factory=list)
    control: bool = True


def read_sweep_file(path: str, changes: Sequence[str] = ()) -> tuple[SweepFile, list[str]]:
    """Read a sweep file and lay `--set` over it.

    Args:
        path: of the YAML file.
        changes: `key=value` each; a flag of `base`, `grid.<flag>`, `seeds` or `control`; the value is YAML.

    Returns:
        The file with what could be read of it, and what is wrong with its form.

    Raises:
        UserError: it cannot be read at all, or is no mapping.
    """
    loaded = _load(path)
    problems = [
        f"{key}: no such key; expected {', '.join(KEYS)}.{did_you_mean(str(key), KEYS)} A flag of `train run` goes "
        "under `base`."
        for key in loaded
        if key not in KEYS
    ]
    problems += _apply(loaded, changes) + _spell(loaded)
    base, seeds, grid, points = (loaded.get(key) for key in KEYS[:4])
    control = loaded.get("control", True)
    problems += _base_problems(base) + _seed_problems(seeds) + _grid_problems(grid) + _point_problems(points)
    if not isinstance(control, bool):
        problems.append(f"control: expected true or false, found {control!r}.")
    sweep = SweepFile(
        base=dict(base) if isinstance(base, dict) else {},
        seeds=list(seeds) if isinstance(seeds, list) else [],
        grid={k: list(v) for k, v in grid.items() if isinstance(v, list)} if isinstance(grid, dict) else {},
        points=[dict(point) for point in points if isinstance(point, dict)] if isinstance(points, list) else [],
        control=control is not False,
    )
    return sweep, problems + _clashes(sweep)


def flag_names(sweep: SweepFile) -> list[tuple[str, str]]:
    """Return every flag that the file names, with where it stands."""
    found = [(name, "base") for name in sweep.base]
    found += [(name, "grid") for name in sweep.grid]
    found += [
        (name, f"points[{index}]")
        for index, point in enumerate(sweep.points)
        for name in point
        if name not in ("name", "control")
    ]
    return found


def flag_problems(sweep: SweepFile, known: Collection[str]) -> list[str]:
    """Return a sentence for every flag that `train run` does not have, with the nearest that it has."""
    found = []
    for name, where in flag_names(sweep):
        if name in OWN_FLAGS:
            found.append(f"{where}: {name} is not for the file: {OWN_FLAGS[name]}.")
        elif name not in known:
            found.append(f"{where}: `train run` has no flag {name!r}.{did_you_mean(str(name), known)}")
    return found


def _load(path: str) -> dict[str, Any]:
    import yaml

    try:
        loaded = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_unique_loader())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file. `train sweep --help` shows what a sweep file looks like.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: expected YAML ({error}).") from error
    if not isinstance(loaded, dict):
        raise UserError(
            f"{path}: expected a mapping with {', '.join(KEYS)}, found {type(loaded).__name__}. `train sweep --help` "
            "shows one."
        )
    return loaded


def _unique_loader() -> Any:
    """Return YAML's safe loader that refuses a key given twice, where YAML itself keeps the last in silence."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [key.value for key, _ in node.value]
            twice = next((key for key in keys if keys.count(key) > 1 and key != "<<"), None)
            if twice is not None:
                raise yaml.constructor.ConstructorError(None, None, f"{twice!r} is given twice", node.start_mark)
            return super().construct_mapping(node, deep)

    return Loader


def _apply(loaded: dict[str, Any], changes: Sequence[str]) -> list[str]:
    """Lay `--set` over the file; return what is wrong with it."""
    import yaml

    problems = []
    for change in changes:
        key, equals, text = change.partition("=")
        key = key.strip().removeprefix("--").replace("-", "_")
        if not equals or not key:
            problems.append(f"--set {change}: expected key=value, such as --set max_steps=20.")
            continue
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            problems.append(f"--set {change}: expected a YAML value ({error}).")
            continue
        section, _, name = key.rpartition(".")
        if key in ("seeds", "control"):
            loaded[key] = value
        elif section in ("", "base", "grid"):
            place = loaded.setdefault(section or "base", {})
            if place is None:
                place = loaded[section or "base"] = {}
            if isinstance(place, dict):
                place[name] = value
        else:
            problems.append(f"--set {change}: expected a flag, grid.<flag>, seeds or control, found {key}.")
    return problems


def _spell(loaded: dict[str, Any]) -> list[str]:
    """Bring flags into one spelling, with underscores, as `train run` takes both; return which are there in both."""
    problems = []
    points = loaded.get("points")
    for place in (loaded.get("base"), loaded.get("grid"), *(points if isinstance(points, list) else ())):
        for name in list(place) if isinstance(place, dict) else ():
            spelled = str(name).removeprefix("--").replace("-", "_")
            if spelled == name:
                continue
            if spelled in place:
                problems.append(f"{spelled}: is given twice, as {name} too. Remove one.")
            place[spelled] = place.pop(name)
    return problems


def _base_problems(base: Any) -> list[str]:
    if base is None:
        return ["base: expected the settings that all runs share, at least `shards`; found nothing."]
    return [] if isinstance(base, dict) else [f"base: expected flags with values, found {type(base).__name__}."]


def _seed_problems(seeds: Any) -> list[str]:
    if not isinstance(seeds, list) or not seeds:
        return [f"seeds: expected a list of whole numbers such as [1, 2, 3], found {seeds!r}."]
    bad = [seed for seed in seeds if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32]
    if bad:
        return [f"seeds: expected whole numbers from 0 to 2^32 - 1, found {', '.join(map(repr, bad))}."]
    twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    return [f"seeds: {', '.join(map(str, twice))} is there twice; a run is a point with a seed."] if twice else []


def _grid_problems(grid: Any) -> list[str]:
    if grid is None:
        return []
    if not isinstance(grid, dict):
        return [f"grid: expected flags with lists of values, found {type(grid).__name__}."]
    if not grid:
        return ["grid: is empty, so there is nothing to run; give flags with lists of values, or remove it."]
    problems = []
    for name, values in grid.items():
        if not isinstance(values, list):
            problems.append(f"grid: {name} expected a list of values, found {values!r}. One value goes under `base`.")
        elif not values:
            problems.append(f"grid: {name} has no values, so the grid is empty; give some, or remove it.")
        elif any(values.count(value) > 1 for value in values):
            problems.append(f"grid: {name} has a value twice: {values}.")
    return problems


def _point_problems(points: Any) -> list[str]:
    if points is None:
        return []
    if not isinstance(points, list):
        return [f"points: expected a list of settings, found {type(points).__name__}."]
    if not points:
        return ["points: is empty, so there is nothing to run; give some settings, or remove it."]
    problems = []
    for index, point in enumerate(points):
        if not isinstance(point, dict):
            problems.append(f"points[{index}]: expected flags with values, found {type(point).__name__}.")
            continue
        if "name" in point and (not isinstance(point["name"], str) or not point["name"]):
            problems.append(f"points[{index}]: name expected text, found {point['name']!r}.")
        if not isinstance(point.get("control", True), bool):
            problems.append(f"points[{index}]: control expected true or false, found {point['control']!r}.")
        first = points.index(point)
        if first < index:
            problems.append(f"points[{index}]: is the same as points[{first}].")
    return problems


def _clashes(sweep: SweepFile) -> list[str]:
    """Return the flags that two places set, where one of them would be ignored."""
    found = [
        f"{name}: is in `base` and in `grid`; one of the two would be ignored. Remove one."
        for name in sweep.grid
        if name in sweep.base
    ]
    found += [
        f"points[{index}]: {name} is in `grid` too, which is taken times every point. Give it in one of the two."
        for index, point in enumerate(sweep.points)
        for name in point
        if name in sweep.grid
    ]
    return found
