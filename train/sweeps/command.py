"""`train sweep SWEEP.yaml --out DIR`: one annotation, many runs.

What enters: the words after `train sweep`. What leaves: an exit status, 0 when every run has finished and 1 otherwise.
Nothing starts before the whole sweep has been checked.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError, raise_together
from train.objectives.reads import is_true
from train.settings.parser import CommandParser
from train.sweeps import state
from train.sweeps.estimates import disk_line, dry_run_lines
from train.sweeps.file import SweepFile, read_sweep_file
from train.sweeps.points import Point, effective, make_points
from train.sweeps.runner import Placement, Stopped, run_all
from train.sweeps.state import Run, run_state

DESCRIPTION = """Run a grid of settings with several seeds, each as a `train run` of its own, into one directory.

A file like this one, sweep.yaml:

    base:                       # what all runs share: any flag of `train run`, a preset too
      shards: shards/first
      model: tiny
      max_steps: 20
      eval_fraction: 0.1        # held out, the same documents in every run
    seeds: [1, 2, 3]
    points:                     # settings that go together
      - {objective: sft}
      - {objective: go, grouper: tfidf}
    grid:                       # every combination, with each of the points
      eta: [0.5, 0.7, 0.9]

    train sweep sweep.yaml --out sweeps/first --dry-run
    train sweep sweep.yaml --out sweeps/first
    train compare sweeps/first --baseline objective=sft

A point is a set of settings without the seed. sft does not read eta, so this file has 1 + 3 points. A point with groups
brings its control, named <point>.permuted: the same groups dealt out by chance within each document. `control: false`,
in the file or in a point, leaves it out. `name:` in a point names it; otherwise it is named by what varies.

The directory is the state. The same command does what is left: finished runs are skipped, unfinished ones go on from
their checkpoints (save_steps says how often one is written), failed ones are tried again. Other settings into the same
directory are refused."""


def _as_set(flag: str) -> str:
    return f" A setting of the runs is given by --set {flag.removeprefix('--')}=VALUE."


def build_parser() -> CommandParser:
    """Return the parser of `train sweep`."""
    parser = CommandParser("sweep", DESCRIPTION, advise=_as_set)
    parser.add_argument("file", metavar="SWEEP.yaml", help="what to run")
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="DIR/sweep.json, DIR/runs/<point>/<seed>/"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of base, or grid.<flag>, seeds or control, over the file's; may be repeated",
    )
    parser.add_argument("--dry_run", action="store_true", help="print the runs, what each would take and what is left")
    parser.add_argument(
        "--keep",
        choices=state.KEEP,
        default="model",
        help="what stays of a finished run: metrics alone, the model too (default), or all with its checkpoints",
    )
    parser.add_argument("--extend", action="store_true", help="add new seeds and points to the sweep of this directory")
    parser.add_argument(
        "--runs_at_once",
        type=_at_least_one,
        metavar="N",
        help="runs at the same time; default what the GPUs hold, on CPUs one a machine. Threads are shared out",
    )
    parser.add_argument(
        "--gpus_per_run",
        type=_gpus,
        metavar="G",
        help="GPUs of each run: 1 where there are any (default), a share such as 0.5, several for runs with `workers`, "
        "0 for CPUs",
    )
    parser.add_argument("--address", metavar="ADDRESS", help="a Ray cluster, such as auto; default this machine")
    return parser


def sweep_command(rest: Sequence[str]) -> int:
    """Run a sweep; return 0 when every run has finished, 1 when one failed, 130 or 143 when it was ended."""
    arguments = build_parser().parse(rest)
    sweep, problems = read_sweep_file(arguments.file, arguments.set)
    points, notes, more = make_points(sweep) if sweep.grid or sweep.points or not problems else ([], [], [])
    problems += more + _placement_problems(arguments, sweep, points)
    out: Path = arguments.out
    before = _read_before(out) if not problems else None
    asked = state.describe(sweep.base, sweep.seeds, points, arguments.keep, _manifests(points))
    sizes = _known_sizes(before, asked)
    if sizes is None or problems:
        from train.sweeps.validation import check_points

        sizes, found = check_points(sweep, points, (sweep.seeds or [0])[0])
        problems += found
    raise_together(problems)
    for entry in asked["points"]:
        entry |= {"steps": sizes[entry["name"]].steps, "documents": sizes[entry["name"]].documents}
        entry["documents_per_step"] = sizes[entry["name"]].per_step
    state.check_directory(out, before, asked, arguments.extend)
    runs = state.list_runs(out, points, sweep.seeds)
    on_cpus = points and all(is_true(point.settings.get("use_cpu")) for point in points)
    gpus = 0.0 if on_cpus and arguments.gpus_per_run is None else arguments.gpus_per_run
    placement = Placement(arguments.address, gpus, arguments.runs_at_once)
    if arguments.dry_run:
        print("\n".join([*notes, *dry_run_lines(runs, sizes, placement.runs_at_once or 1)]))
        print(_disk(out, runs, sweep, points, arguments))
        return 0
    with state.held(out):
        before = _read_before(out)
        state.check_directory(out, before, asked, arguments.extend)
        state.save_sweep(out, before, asked)
        return _run(out, runs, notes, placement, sweep, points, arguments)


def _run(
    out: Path,
    runs: list[Run],
    notes: list[str],
    placement: Placement,
    sweep: SweepFile,
    points: list[Point],
    arguments: argparse.Namespace,
) -> int:
    from rich.console import Console

    from train.sweeps.table import SweepTable

    console = Console(highlight=False, markup=False)
    left = [run for run in runs if run_state(run.directory) != "finished"]
    for run in runs:
        if run not in left:  # a sweep may have been killed before it, or --keep may have changed
            state.remove_what_is_not_kept(run.directory, arguments.keep)
    if not left:
        print(f"{out}: all {len(runs)} runs are finished, nothing is left to do.\nnext: `train compare {out}`")
        return 0
    print("\n".join([*notes, _beginning(out, runs, left, points, sweep)]))
    print(_disk(out, runs, sweep, points, arguments), flush=True)
    with SweepTable(console, runs) as table:
        try:
            run_all(left, placement, arguments.keep, table)
        except (Stopped, KeyboardInterrupt) as stop:
            number = stop.number if isinstance(stop, Stopped) else signal.SIGINT
            finished = sum(run_state(run.directory) == "finished" for run in runs)
            line = f"ended by {signal.Signals(number).name}: {finished} of {len(runs)} runs are finished. The same "
            print(f"{line}command goes on.", file=sys.stderr, flush=True)
            return 128 + number
    failed = [run.name for run in runs if run_state(run.directory) != "finished"]
    print(f"\n{len(runs) - len(failed)} of {len(runs)} runs are finished in {out}")
    if failed:
        print(f"failed: {', '.join(failed)}. {state.FAILED_NAME} beside each says why; the same command tries again.")
        return 1
    print(f"next: `train compare {out}`")
    return 0


def _beginning(out: Path, runs: list[Run], left: list[Run], points: list[Point], sweep: SweepFile) -> str:
    controls = sum(point.control_of is not None for point in points)
    named = f"{len(points)} points" + (f" ({controls} of them permuted controls)" if controls else "")
    text = f"{out}: {named} × {len(sweep.seeds)} seeds = {len(runs)} runs"
    return text if len(left) == len(runs) else f"{text}, {len(left)} left"


def _disk(out: Path, runs: list[Run], sweep: SweepFile, points: list[Point], arguments: argparse.Namespace) -> str:
    settings = effective(sweep.base, points[0].settings)
    return disk_line(out, runs, settings, arguments.keep, arguments.runs_at_once or 1)


def _read_before(out: Path) -> dict[str, Any] | None:
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: expected a directory, found a file. Give another path.")
    return state.read_sweep(out)


def _known_sizes(before: dict[str, Any] | None, asked: dict[str, Any]) -> dict[str, Any] | None:
    """Return the sizes of points that this very version has checked before, so that going on imports no torch."""
    from train.sweeps.validation import Size

    if before is None or before["product_version"] != asked["product_version"] or state.differences(before, asked):
        return None
    return {
        point["name"]: Size(point["steps"], point["documents"], point["documents_per_step"])
        for point in before["points"]
    }


def _manifests(points: list[Point]) -> dict[str, str]:
    """Return the hash of the manifest of each shard directory that the points name; what is missing is said later."""
    from common.manifest import manifest_hash

    found: dict[str, str] = {}
    for point in points:
        shards = point.settings.get("shards") or []
        for path in shards if isinstance(shards, list) else [shards]:
            try:
                found.setdefault(str(path), manifest_hash(Path(str(path))))
            except OSError:
                continue
    return found


def _placement_problems(arguments: argparse.Namespace, sweep: SweepFile, points: list[Point]) -> list[str]:
    """Return where the placement does not fit the runs."""
    problems, gpus = [], arguments.gpus_per_run
    for point in points:
        workers = point.settings.get("workers")
        if not isinstance(workers, int):
            workers = 1
        if gpus and gpus > 1 and workers != gpus:
            problems.append(
                f"--gpus-per-run {gpus:g}: {point.name} trains in {workers} process(es), and each takes one GPU; give "
                f"`workers: {gpus:g}` in base."
            )
        elif gpus is None and workers > 1:
            problems.append(f"{point.name}: has {workers} workers; say --gpus-per-run {workers}, or 0 for CPUs.")
        elif gpus is not None and 0 < gpus <= 1 and workers > 1:
            problems.append(f"--gpus-per-run {gpus:g}: {point.name} has {workers} workers, a GPU each.")
    return problems


def _at_least_one(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, found {text!r}")
    return value


def _gpus(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if value < 0 or value == float("inf") or value != value or (value > 1 and value != int(value)):
        raise argparse.ArgumentTypeError(f"expected a share of a GPU such as 0.5, or a whole number, found {text!r}")
    return value
