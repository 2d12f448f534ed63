"""Runs that were not asked the same are never put in one table.

What enters: points, and what was read beside their runs. What leaves: what they have in common, for the report. Runs on
different shards, held-out documents or benchmark questions are refused with what differs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import raise_together
from train.comparison.reading.benchmarks import Benchmarks
from train.comparison.reading.documents import Documents, check_same_documents
from train.comparison.reading.runs import Run

SHOWN = 12  # characters of a hash


@dataclass(frozen=True)
class Common:
    """What all runs share."""

    manifest_hashes: tuple[str, ...]
    eval_hash: str | None
    num_documents: int
    tasks: dict[str, dict[str, Any]]  # version, num_fewshot, limit, number of items
    other_sets: dict[str, int]  # held-out documents of other shards, by the set's name


def check_pool(
    runs: Sequence[Run], documents: Mapping[Path, Mapping[str, Documents]], benchmarks: Mapping[Path, Benchmarks]
) -> Common:
    """Return what the runs share.

    Raises:
        UserError: shards, held-out documents or tasks differ; all differences together.
    """
    trained = [run for run in runs if run.content]
    problems = _differences(trained, _manifests, "shards (manifest hashes)", lambda value: _hashes(value))
    problems += _differences(
        [run for run in trained if run.content.get("eval_hash")],
        lambda run: run.content["eval_hash"],
        "held-out documents (eval_hash; --eval_seed, --eval_fraction and the shards choose them)",
        lambda value: value[:SHOWN],
    )
    held = {
        name: [sets[name] for sets in documents.values() if name in sets]
        for name in sorted({name for sets in documents.values() for name in sets})
    }
    for name, same in held.items() if not problems else ():
        first = _first_of_each(same)
        if len(first) > 1:
            problems.append(
                f"held-out documents{' of ' * bool(name)}{name}: expected one set, found {len(first)}: "
                + "; ".join(f"{one.path} {str(one.eval_hash)[:SHOWN]}" for one in first)
            )
        else:
            problems += check_same_documents(same)
    tasks: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(name for one in benchmarks.values() for name in one.tasks):
        having = [run for run in runs if name in benchmarks[run.directory].tasks]
        asked = {run.directory: benchmarks[run.directory].asked(name) for run in having}
        problems += _differences(having, lambda run, asked=asked: asked[run.directory], f"task {name}", _task)
        first = asked[having[0].directory]
        tasks[name] = {**first, "items": len(first["items"])}
    suites = {name for one in benchmarks.values() for name in one.suites}
    for suite in sorted(suites):
        having = [run for run in runs if suite in benchmarks[run.directory].suites]
        problems += _differences(
            having,
            lambda run, suite=suite: tuple(benchmarks[run.directory].suites[suite]["columns"]),
            f"suite {suite} (columns)",
            ", ".join,
        )
    raise_together(problems)
    hashes = _manifests(trained[0]) if trained else ()
    own = held.get("", [])
    eval_hash = next((one.eval_hash for one in own if one.eval_hash), None)
    other_sets = {name: len(same[0].ids) for name, same in held.items() if name}
    return Common(hashes, eval_hash, len(own[0].ids) if own else 0, tasks, other_sets)


def _differences(runs: Sequence[Run], value: Callable[[Run], Any], what: str, text: Callable[[Any], str]) -> list[str]:
    """Return one sentence if a value is not the same for all runs: each value once, with runs that have it."""
    places: list[tuple[Any, list[Run]]] = []
    for run in runs:
        have = value(run)
        for other, same in places:
            if other == have:
                same.append(run)
                break
        else:
            places.append((have, [run]))
    if len(places) < 2:
        return []
    found = "; ".join(
        f"{text(have)} in {same[0].directory}" + (f" and {len(same) - 1} more" if len(same) > 1 else "")
        for have, same in places
    )
    return [f"{what}: expected the same for all runs, found {len(places)}: {found}. Compare them apart."]


def _manifests(run: Run) -> tuple[str, ...]:
    return tuple(str(shards.get("manifest_sha256")) for shards in run.content.get("shards", []))


def _hashes(values: Sequence[str]) -> str:
    return "+".join(value[:SHOWN] for value in values) or "none"


def _task(asked: Mapping[str, Any]) -> str:
    words = ", ".join(f"{key} {asked[key]}" for key in ("version", "num_fewshot", "limit"))
    return f"{words}, {len(asked['items'])} items ({', '.join(str(name) for name, _ in asked['items'][:2])}…)"


def _first_of_each(held: Sequence[Documents]) -> list[Documents]:
    return list({one.eval_hash: one for one in held if one.eval_hash}.values())
