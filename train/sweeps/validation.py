"""Every point of a sweep, parsed as `train run` would parse it, before anything starts.

What enters: the sweep's file and its points. What leaves: every problem there is, each said once with the points that
it concerns; and each point's number of optimizer steps and documents. One import of torch serves all points. Next:
`estimates.py` says what the runs would take.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from common.errors import UserError
from train.objectives import DEFAULT_OBJECTIVE, OBJECTIVES
from train.settings.early import check_early, flag_names
from train.sweeps.file import SweepFile, flag_problems
from train.sweeps.points import Point, words


class Size(NamedTuple):
    """What one run of a point does."""

    steps: int
    documents: int  # trained on, each once an epoch
    per_step: int  # documents of one optimizer step (packed rows with --packing)


def check_points(sweep: SweepFile, points: Sequence[Point], seed: int) -> tuple[dict[str, Size], list[str]]:
    """Return each point's size, by name, and every problem of flags, settings and shards.

    Args:
        sweep: for where in the file a flag stands.
        points: to be parsed.
        seed: any of the sweep's.
    """
    known = flag_names(OBJECTIVES)
    problems = flag_problems(sweep, known) if known else []
    if problems:
        return {}, problems  # the parser would say the same of each point again
    _, problems = _each(points, lambda point: check_early(_said(point, seed), OBJECTIVES, DEFAULT_OBJECTIVE))
    if problems:
        return {}, problems  # before torch is imported
    # TRL sets this flag by default, under the name that transformers deprecates.
    warnings.filterwarnings("ignore", message="`gradient_checkpointing` is deprecated")
    return _each(points, lambda point: _size(point, seed))


def _each(points: Sequence[Point], check: Callable[[Point], Any]) -> tuple[dict[str, Any], list[str]]:
    """Return what `check` gives for each point, by name, and each problem once, with its points."""
    results: dict[str, Any] = {}
    found: dict[str, list[str]] = {}
    for point in points:
        try:
            results[point.name] = check(point)
        except UserError as error:
            for problem in _apart(str(error)):
                found.setdefault(problem, []).append(point.name)
    problems = []
    for problem, names in found.items():
        where = "every point" if len(names) == len(points) > 1 else ", ".join(names)
        problems.append(f"{where}: {problem}")
    return results, problems


def _said(point: Point, seed: int) -> list[str]:
    return [*words(point.settings), "--seed", str(seed), "--output_dir", "nowhere", "--point", point.name]


def _size(point: Point, seed: int) -> Size:
    from train.data.loading import open_shards
    from train.data.plan import plan_groups
    from train.run import configure

    configuration = configure(_said(point, seed))
    shards = open_shards(configuration.run.shards or [])
    args, objective = configuration.args, configuration.objective
    plan_groups(shards, configuration.run.grouper, objective.needs, args.eta, args.resolved_ties, objective.name)
    return run_size(configuration, shards)


def run_size(configuration: Any, shards: Sequence[Any]) -> Size:
    """Return how many optimizer steps a run takes, as transformers counts them."""
    args, run = configuration.args, configuration.run
    held = sum(directory.manifest.counts.documents for directory in shards)
    documents = held - round(held * run.eval_fraction)
    per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * (run.workers or 1)
    rows = documents
    if args.packing:  # rows are filled to about their length
        length = args.max_length or max(directory.manifest.max_length for directory in shards)
        tokens = sum(directory.manifest.counts.tokens for directory in shards) * documents / max(held, 1)
        rows = max(1, round(tokens / length))
    batches = -(-rows // (args.per_device_train_batch_size * (run.workers or 1)))
    steps = args.max_steps
    if steps <= 0:
        steps = math.ceil(args.num_train_epochs * max(-(-batches // args.gradient_accumulation_steps), 1))
    return Size(steps, documents, per_step)


def _apart(text: str) -> list[str]:
    """Return the problems of one `UserError`, which may list several."""
    first, *rest = text.split("\n  - ")
    return rest or [first]
