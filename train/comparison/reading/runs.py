"""Finding runs on disk: sweeps, single runs, directories of runs, evaluated checkpoints.

What enters: the directories of the command line. What leaves: `Run`s with the content of their `run.json`, and what has
not finished, each by its place. Next: `points.py` groups them.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError, raise_together
from common.files import read_json

RUN_NAME = "run.json"
SWEEP_NAME = "sweep.json"
FAILED_NAME = "failed.json"
DOCUMENTS_NAME = "eval_documents.parquet"
HELD_OUT_NAME = "held_out"  # the same of other shards, a file each
EVALUATION_NAME = "evaluation"
METRICS_NAME = "metrics.jsonl"


@dataclass(frozen=True)
class Run:
    """One finished run, or an evaluated checkpoint that this project has not trained (without content and seed)."""

    directory: Path
    content: dict[str, Any]
    seed: int | None
    point: str | None  # its name; None: a run on its own, named by its settings
    control_of: str | None = None
    sweep: Path | None = None


@dataclass(frozen=True)
class Unfinished:
    """A run that has not ended well."""

    name: str
    reason: str  # failed, unfinished, waiting
    tail: tuple[str, ...] = ()  # the last lines of one that failed


@dataclass(frozen=True)
class Found:
    """All that lies in the directories."""

    runs: list[Run]
    unfinished: list[Unfinished]
    sweeps: list[Path]


def find_runs(directories: Sequence[Path]) -> Found:
    """Read every run of the directories, once each.

    Raises:
        UserError: a directory that is not there or holds no finished run, or files that cannot be read; all together.
    """
    found = Found([], [], [])
    problems: list[str] = []
    seen: set[Path] = set()
    for directory in directories:
        before = len(found.runs)
        if not directory.is_dir():
            problems.append(f"{directory}: expected the directory of a sweep or a run, found none.")
            continue
        try:
            _read(directory, found, seen)
        except UserError as error:
            problems.append(str(error))
            continue
        if len(found.runs) == before and directory.resolve() not in seen:
            left = len(found.unfinished)
            more = f"; {left} have not finished: `train sweep` goes on with them" if left else ""
            problems.append(f"{directory}: expected at least one finished run ({RUN_NAME}), found none{more}.")
    raise_together(problems)
    return found


def _read(directory: Path, found: Found, seen: set[Path]) -> None:
    if (directory / SWEEP_NAME).is_file():
        found.sweeps.append(directory)
        _read_sweep(directory, found, seen)
    elif (
        (directory / RUN_NAME).is_file()
        or (directory / DOCUMENTS_NAME).is_file()
        or (directory / HELD_OUT_NAME).is_dir()
        or (directory / EVALUATION_NAME).is_dir()
    ):
        _add(found, seen, directory)
    else:
        for child in sorted(path for path in directory.iterdir() if path.is_dir() and not path.name.startswith(".")):
            if not child.name.startswith("checkpoint-"):
                _read(child, found, seen)


def _read_sweep(directory: Path, found: Found, seen: set[Path]) -> None:
    sweep = read_json(directory / SWEEP_NAME)
    try:
        points = {point["name"]: point.get("control_of") for point in sweep["points"]}
        seeds = [int(seed) for seed in sweep["seeds"]]
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(
            f"{directory / SWEEP_NAME}: expected the file that `train sweep` writes, with points and seeds; found "
            f"another one ({error!r})."
        ) from error
    for name, control_of in points.items():
        for seed in seeds:
            place = directory / "runs" / name / str(seed)
            label = f"{name}/{seed}"
            if (place / RUN_NAME).is_file():
                _add(found, seen, place, name, seed, control_of, directory)
            elif (place / FAILED_NAME).is_file():
                failed = read_json(place / FAILED_NAME)
                found.unfinished.append(Unfinished(label, "failed", tuple(map(str, failed.get("tail", [])))))
            else:
                reason = "unfinished" if place.is_dir() and any(place.iterdir()) else "waiting"
                found.unfinished.append(Unfinished(label, reason))


def _add(
    found: Found,
    seen: set[Path],
    directory: Path,
    point: str | None = None,
    seed: int | None = None,
    control_of: str | None = None,
    sweep: Path | None = None,
) -> None:
    if directory.resolve() in seen:
        return
    seen.add(directory.resolve())
    path = directory / RUN_NAME
    if not path.is_file():
        found.runs.append(Run(directory, {}, None, directory.name))
        return
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("run"), dict):
        raise UserError(f"{path}: expected the file that `train run` writes, found another one. Train again.")
    seed = content.get("seed", content.get("training", {}).get("seed")) if seed is None else seed
    named = content["run"].get("point") or content.get("point")
    found.runs.append(Run(directory, content, seed, point or named, control_of, sweep))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the JSON objects of a file with one a line; NaN is read as NaN.

    Raises:
        UserError: a line that is no JSON object.
    """
    lines = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            lines.append(json.loads(line))
        except ValueError as error:
            raise UserError(
                f"{path}, line {number}: expected a JSON object, found something else ({error})."
            ) from error
    return lines
