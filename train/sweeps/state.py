"""A sweep's directory, which is its state: what is to be run, what is done, who is at it.

What enters: the directory, the sweep as asked for. What leaves: `sweep.json`, and the state of each run as its own
directory tells it:

- finished: `run.json`, which `train run` writes last;
- failed: `failed.json`, with the exit status and the last lines;
- unfinished: anything else of a run;
- waiting: nothing.

    DIR/sweep.json               what is run; another sweep is refused
    DIR/sweep.lock               held by the process that runs the sweep, by the kernel's own lock: gone with it
    DIR/runs/<point>/<seed>/     the output directory of one `train run`, with its log.txt

Next: `runner.py` runs what is left.
"""

import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from common.errors import UserError
from common.files import read_json, write_json
from common.manifest import product_version
from train.sweeps.points import Point, as_json

SWEEP_VERSION = 1
SWEEP_NAME = "sweep.json"
LOCK_NAME = "sweep.lock"
RUNS_NAME = "runs"
RUN_NAME = "run.json"
FAILED_NAME = "failed.json"
LOG_NAME = "log.txt"
CHECKPOINT_PREFIX = "checkpoint-"
KEEP = ("metrics", "model", "all")
RESUME_STATE = (f"{CHECKPOINT_PREFIX}*", ".data", ".ray")
WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.pt", "tokenizer*", "special_tokens_map.json")

State = Literal["waiting", "unfinished", "failed", "finished"]


@dataclass(frozen=True)
class Run:
    """A point with a seed, and where it lies."""

    point: Point
    seed: int
    directory: Path

    @property
    def name(self) -> str:
        """`<point>/<seed>`."""
        return f"{self.point.name}/{self.seed}"


def list_runs(out: Path, points: list[Point], seeds: list[int]) -> list[Run]:
    """Return all runs of a sweep: every point with the first seed, then with the next."""
    return [Run(point, seed, out / RUNS_NAME / point.name / str(seed)) for seed in seeds for point in points]


def run_state(directory: Path) -> State:
    """Return how far a run is, from its directory alone."""
    if (directory / RUN_NAME).is_file():
        return "finished"
    if (directory / FAILED_NAME).is_file():
        return "failed"
    return "unfinished" if directory.is_dir() and any(directory.iterdir()) else "waiting"


def last_checkpoint_step(directory: Path) -> int:
    """Return the step of a run's newest checkpoint, complete or not; 0 without one."""
    names = [path.name.removeprefix(CHECKPOINT_PREFIX) for path in directory.glob(f"{CHECKPOINT_PREFIX}*")]
    return max((int(name) for name in names if name.isdecimal()), default=0)


def remove_what_is_not_kept(directory: Path, keep: str) -> None:
    """Remove a finished run's resume state, and with `metrics` its weights and tokenizer; `all` keeps everything."""
    patterns = {"all": (), "model": RESUME_STATE, "metrics": (*RESUME_STATE, *WEIGHTS)}[keep]
    for pattern in patterns:
        for path in directory.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Hold a sweep's directory while the block runs.

    The lock is the kernel's, so it ends with the process, however that ends; what the file says is for the reader.

    Raises:
        UserError: another process holds it, or it cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(out / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror}). Give another directory.") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            said = os.pread(descriptor, 500, 0).decode(errors="replace").strip() or "another process"
            raise UserError(
                f"--out {out}: another `train sweep` runs this directory ({said}). Wait for it, or end it; the same "
                "command then does what is left."
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {now()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def read_sweep(out: Path) -> dict[str, Any] | None:
    """Return the content of `sweep.json`, or None where there is none.

    Raises:
        UserError: it is not one that this version reads.
    """
    path = out / SWEEP_NAME
    if not path.is_file():
        return None
    content = read_json(path)
    version = content.get("sweep_version") if isinstance(content, dict) else None
    if version != SWEEP_VERSION:
        raise UserError(f"{path}: expected sweep_version {SWEEP_VERSION}, found {version!r}. Give another --out.")
    return content


def describe(
    base: dict[str, Any], seeds: list[int], points: list[Point], keep: str, manifests: dict[str, str]
) -> dict[str, Any]:
    """Return the content of a new `sweep.json`; `manifests` are the hashes of the shards' manifests, by path."""
    content = {
        "sweep_version": SWEEP_VERSION,
        "base": base,
        "seeds": seeds,
        "points": [as_json(point) for point in points],
        "keep": keep,
        "manifest_hashes": manifests,
        "product_version": product_version(),
        "started": now(),
    }
    return json.loads(json.dumps(content, default=str))  # as it comes back from the file


def check_directory(out: Path, before: dict[str, Any] | None, asked: dict[str, Any], extend: bool) -> None:
    """Refuse a directory that holds something else than this sweep.

    Raises:
        UserError: another sweep, with what differs; a sweep's part; or foreign files.
    """
    if before is None:
        foreign = sorted(p.name for p in out.iterdir() if p.name != LOCK_NAME) if out.is_dir() else []
        if foreign:
            raise UserError(
                f"--out {out}: expected a new or empty directory, or a sweep's, found {foreign[0]!r} and no "
                f"{SWEEP_NAME}. Give another directory."
            )
        inside = next((parent for parent in out.absolute().parents if (parent / SWEEP_NAME).is_file()), None)
        if inside is not None:
            raise UserError(f"--out {out}: lies in another sweep's directory, {inside}. Give another one.")
        return
    changes = differences(before, asked)
    if not changes:
        return
    additions = not any(change.takes_away for change in changes)
    if extend and additions:
        return
    listed = "\n".join(f"  - {change.text}" for change in changes)
    way = "Give the same settings to go on, or another directory."
    if additions:
        way += " Nothing of what is there changes, so --extend adds the new runs to it."
    elif extend:
        way += " --extend only adds seeds and points."
    raise UserError(f"--out {out}: holds another sweep, started {before.get('started')}:\n{listed}\n{way}")


@dataclass(frozen=True)
class Change:
    """One thing that differs between the sweep of a directory and the one asked for."""

    text: str
    takes_away: bool  # not only something new beside the old


def differences(before: dict[str, Any], asked: dict[str, Any]) -> list[Change]:
    """Return what differs between two sweeps' runs; `keep` and versions change no run."""
    changes = []
    if before["seeds"] != asked["seeds"]:
        gone = set(before["seeds"]) - set(asked["seeds"])
        if gone or set(asked["seeds"]) - set(before["seeds"]):  # another order is no change
            changes.append(Change(f"seeds were {before['seeds']}, are {asked['seeds']}", bool(gone)))
    old, new = ({point["name"]: point for point in content["points"]} for content in (before, asked))
    changes += [Change(f"point {name} is no longer there", True) for name in old if name not in new]
    changes += [Change(f"point {name} is new", False) for name in new if name not in old]
    settings: dict[str, list[str]] = {}
    for name in old:
        if name in new:
            for text in _changed(old[name]["settings"], new[name]["settings"]):
                settings.setdefault(text, []).append(name)
    for text, names in settings.items():
        where = "every point" if len(names) == len(old) > 1 else ", ".join(names)
        changes.append(Change(f"{where}: {text}", True))
    hashes = {path: value[:12] + "…" for path, value in before.get("manifest_hashes", {}).items()}
    found = {path: value[:12] + "…" for path, value in asked["manifest_hashes"].items()}
    changes += [Change(f"shards: manifest of {text}", True) for text in _changed(hashes, found) if hashes]
    return changes


def _changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    def said(settings: dict[str, Any], name: str) -> str:
        return str(settings[name]) if name in settings else "not given"

    return [
        f"{name} was {said(before, name)}, is {said(now, name)}"
        for name in dict.fromkeys([*before, *now])
        if before.get(name) != now.get(name)
    ]


def save_sweep(out: Path, before: dict[str, Any] | None, asked: dict[str, Any]) -> None:
    """Write `sweep.json`, keeping when the sweep was started.

    Raises:
        UserError: a full disk, say.
    """
    content = {**asked, "started": before["started"] if before else asked["started"]}
    if content == before:
        return
    try:
        write_json(out / SWEEP_NAME, content)
    except OSError as error:
        raise UserError(f"{out / SWEEP_NAME}: cannot be written ({error.strerror}).") from error


def now() -> str:
    """Return the time, ISO 8601 with its zone, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
