"""Benchmark results beside a run: one file a task, item by item, and one a suite.

    evaluation/<task>.json         metrics, and each item's results; with other shots than the task's own
                                   <task>.<n>-shot.json
    evaluation/parts/…             finished leaf tasks of a group that is under way, such as MMLU's subjects
    evaluation/suite-<name>.json   the columns' values, their average, and what they are made of

What enters: a checkpoint, and open tasks. What leaves: these files. A file is a cache: it is taken where the
checkpoint's hash, the task's version and data, shots, limit, template and the harness's version are the same, so that
an evaluation that was killed goes on with the next task.
"""

import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import read_json, write_json
from train.evaluation.checkpoints import Checkpoint
from train.evaluation.harness import Options, headline, load_model, merge, run_leaf
from train.evaluation.suite import Asked, Suite
from train.evaluation.tasks import OpenTask, require_harness

FOLDER = "evaluation"
DECIDING = (
    "task",
    "version",
    "data",
    "num_fewshot",
    "limit",
    "apply_chat_template",
    "checkpoint_hash",
    "harness_version",
)
Say = Callable[[str], None]


@dataclass
class Evaluation:
    """A checkpoint's results, being made."""

    checkpoint: Checkpoint
    options: Options
    say: Say  # where a line a task goes

    def __post_init__(self) -> None:
        """Name the checkpoint by its content; its model is loaded when the first task needs it."""
        self.folder = self.checkpoint.out / FOLDER
        self.identity = {"checkpoint_hash": self.checkpoint.content_hash(), "harness_version": require_harness()}
        self._model: Any = None

    def run(self, tasks: list[OpenTask], suite: Suite | None) -> dict[Asked, dict[str, Any]]:
        """Return every task's record, from its file or by asking it."""
        return {task.asked: self._run_task(task, suite) for task in tasks}

    def _run_task(self, task: OpenTask, suite: Suite | None) -> dict[str, Any]:
        file = self.folder / task.file
        key = self._key(task, task.asked.task)
        record = _cached(file, key)
        if record is None:
            record = key | self._ask(task)
            how = "asked"
        else:
            how = "kept from before"
        metric = suite.headline(task.asked) if suite else headline(record["metrics"])
        told = {"suite": suite.name if suite else None, "headline": metric}
        if {name: record.get(name) for name in told} != told:
            record = {"task": record["task"], **told, **{k: v for k, v in record.items() if k not in told}}
            write_json(file, record)
        self.say(
            f"  {task.asked.task}, {record['num_fewshot']}-shot: {metric} {100 * record['metrics'][metric]:.2f} over "
            f"{len(record['items']):,} items ({how})"
        )
        shutil.rmtree(self._parts(task), ignore_errors=True)
        return record

    def _ask(self, task: OpenTask) -> dict[str, Any]:
        if not task.is_group:
            return self._ask_leaf(task, task.asked.task)
        leaves = []
        for leaf in task.leaves:
            part = self._parts(task) / f"{leaf}.json"
            key = self._key(task, leaf)
            record = _cached(part, key)
            if record is None:
                record = key | self._ask_leaf(task, leaf)
                part.parent.mkdir(parents=True, exist_ok=True)
                write_json(part, record)
            leaves.append(record)
        return merge(leaves)

    def _ask_leaf(self, task: OpenTask, leaf: str) -> dict[str, Any]:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._model is None:
            self._model = load_model(self.checkpoint, self.options)
        return run_leaf(self._model, task, leaf, self.options)

    def _parts(self, task: OpenTask) -> Path:
        return self.folder / "parts" / task.file.removesuffix(".json")

    def _key(self, task: OpenTask, name: str) -> dict[str, Any]:
        asked = {"task": name, "version": task.version, "data": task.data, "num_fewshot": task.shots}
        options = {"limit": self.options.limit, "apply_chat_template": self.options.apply_chat_template}
        return asked | options | self.identity

    def write_suite(self, suite: Suite, records: dict[Asked, dict[str, Any]], tasks: list[OpenTask]) -> dict[str, Any]:
        """Write and return the suite's columns; the average is None until all of them are there.

        Columns that were not asked now stay as they are in the file, where that is of the same checkpoint and limit.
        """
        file, files = self.folder / f"suite-{suite.name}.json", {task.asked: task.file for task in tasks}
        same = {"limit": self.options.limit, "apply_chat_template": self.options.apply_chat_template, **self.identity}
        before = _cached(file, same, tuple(same)) or {"columns": {}, "made_of": {}}
        found = suite.values({asked: record["metrics"] for asked, record in records.items()})
        made_of = {
            column: [{"file": files[asked], "metric": metric, **asdict(asked)} for asked, metric in parts]
            for column, parts in suite.columns.items()
            if found[column] is not None
        }
        found = {name: before["columns"].get(name) if value is None else value for name, value in found.items()}
        values = list(found.values())
        made = {
            "suite": suite.name,
            "columns": {name: value for name, value in found.items() if value is not None},
            "average": math.fsum(values) / len(values) if None not in values else None,
            **same,
            "made_of": {
                name: made_of.get(name) or before["made_of"][name] for name in found if found[name] is not None
            },
        }
        write_json(file, made)
        return made


def _cached(file: Path, key: dict[str, Any], names: tuple[str, ...] = DECIDING) -> dict[str, Any] | None:
    """Return a file's content if all `names` are in it as in `key`."""
    if not file.is_file():
        return None
    try:
        record = read_json(file)
    except UserError:  # half a file of another program: made again
        return None
    same = isinstance(record, dict) and all(record.get(name) == key[name] for name in names)
    return record if same else None
