"""The harness's tasks, opened: with their data, which are local where this machine holds them.

What enters: names of tasks or groups, and shots. What leaves: an `OpenTask` for each, its leaf tasks loaded, or one
`UserError` with everything that could not be. Next: `harness.py` runs them, one after another.

Prompts, choices and metrics are the harness's own configuration; where a local copy of the data set exists, only the
data are replaced (`custom_dataset` of the configuration).
"""

import contextlib
import difflib
import hashlib
import importlib.metadata
import io
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError, raise_together
from train.evaluation.local_data import DATA_HOME, LocalData, find_local
from train.evaluation.suite import Asked, Suite

NEEDS_SENTENCES = "google/IFEval"  # its checks count sentences with nltk's punkt
SPLITS = ("training_split", "validation_split", "test_split")


@dataclass(frozen=True)
class OpenTask:
    """What is asked, ready to run."""

    asked: Asked
    leaves: dict[str, Any]  # the harness's task objects by name; one, unless it is a group
    shots: int
    version: str  # of all leaves, as the harness has it
    file: str  # the name of its results
    data: str  # where the data are from: the hub's name, or the local files' hash

    @property
    def is_group(self) -> bool:
        """Whether it stands for several tasks."""
        return set(self.leaves) != {self.asked.task}


def require_harness() -> str:
    """Return the harness's version.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.metadata.version("lm_eval")
    except importlib.metadata.PackageNotFoundError:
        raise UserError("lm-evaluation-harness is not installed: pip install 'sft-go[eval]'.") from None


def open_tasks(wanted: Sequence[Asked], include_path: str | None = None) -> list[OpenTask]:
    """Open all of them.

    Raises:
        UserError: no such task, its data are neither here nor to be had, or something it needs is missing.
    """
    require_harness()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # its warnings are about what is done here on purpose
    if include_path and not Path(include_path).is_dir():
        raise UserError(f"--include_path {include_path}: expected a folder of task files, found none.")
    manager = _manager([asked.task for asked in wanted], include_path)
    problems, opened = [], []
    for asked in wanted:
        if asked.task not in manager.task_index:
            near = difflib.get_close_matches(asked.task, manager.all_tasks, 3)
            hint = f" Near: {', '.join(near)}." if near else ""
            problems.append(
                f"task {asked.task}: the harness has none of this name.{hint} `lm_eval ls tasks` lists them."
            )
            continue
        try:
            opened.append(_open(manager, asked))
        except UserError as error:
            problems.append(str(error))
    raise_together(problems)
    return opened


def metric_problems(suite: Suite, tasks: Sequence[OpenTask]) -> list[str]:
    """Return which metrics of a suite's columns its tasks do not have, a sentence each."""
    held = {task.asked: set.intersection(*(set(leaf.aggregation()) for leaf in task.leaves.values())) for task in tasks}
    return [
        f"suite {suite.name}, column {column}: task {asked.task} has no metric {metric!r}; it has "
        f"{', '.join(sorted(held[asked]))}."
        for column, parts in suite.columns.items()
        for asked, metric in parts
        if metric.partition(",")[0] not in held[asked]
    ]


def _manager(names: Sequence[str], include_path: str | None) -> Any:
    """Return a manager that knows `names`; of the harness's 14,000 files only those of their folders are read."""
    import lm_eval.tasks
    from lm_eval.tasks import TaskManager

    root = Path(lm_eval.tasks.__file__).parent
    folders = {path for name in names for path in root.iterdir() if path.is_dir() and name.startswith(path.name)}
    own = [include_path] if include_path else []
    manager = TaskManager(include_path=[*sorted(folders), *own], include_defaults=False)
    with contextlib.suppress(KeyError):
        if all(list(_leaves(manager, name)) for name in names):
            return manager
    return TaskManager(include_path=own or None)


def _leaves(manager: Any, name: str) -> Iterator[str]:
    """Yield the names of the tasks that a name stands for; raises KeyError where one is unknown."""
    entry = manager.task_index[name]
    if entry.kind.name == "TAG":
        yield from sorted(entry.tags)
    elif entry.kind.name == "GROUP":
        for child in entry.cfg["task"]:
            if not isinstance(child, str):
                raise UserError(f"task {name}: a group with tasks defined inside it; name its tasks one by one.")
            yield from _leaves(manager, child)
    else:
        yield name


def _open(manager: Any, asked: Asked) -> OpenTask:
    leaves, versions, origins = {}, {}, {}
    shots = own = 0
    for name in _leaves(manager, asked.task):
        config = manager.task_index[name].cfg or {}
        source = (config.get("dataset_path"), config.get("dataset_name"))
        local = find_local(*source) if source[0] else None
        own = config.get("num_fewshot") or 0
        shots = own if asked.shots is None else asked.shots
        if local and shots and not _has_shots(config, local):
            raise UserError(
                f"task {name}: {shots} shots need its few-shot examples, and the copy under ${DATA_HOME} has only "
                f"{', '.join(local.splits)}. Ask it with 0 shots, or unset ${DATA_HOME} to take the hub's."
            )
        leaf = _load(manager, name, config, local)
        if asked.shots is not None and leaf.get_config("num_fewshot") == 0 != asked.shots:
            raise UserError(f"task {name}: the harness fixes it at 0 shots; asked for {asked.shots}.")
        leaves[name] = leaf
        versions[name] = str(leaf.VERSION)
        origins[name] = f"local:{local.sha256}" if local else "/".join(filter(None, source))
    file = f"{asked.task}.json" if shots == own else f"{asked.task}.{shots}-shot.json"
    return OpenTask(asked, leaves, shots, _one_of(versions), file, _one_of(origins))


def _has_shots(config: dict[str, Any], local: LocalData) -> bool:
    fewshot = config.get("fewshot_split") or (config.get("fewshot_config") or {}).get("split")
    # The harness's own rule; without it, a missing training split would be made up for by items that are asked.
    return (fewshot or config.get("training_split") or config.get("validation_split")) in local.splits


def _load(manager: Any, name: str, config: dict[str, Any], local: LocalData | None) -> Any:
    spec: str | dict[str, Any] = name
    if local:
        missing = {split: None for split in SPLITS if config.get(split) and config[split] not in local.splits}
        # A task's configuration is changed, not replaced, only as a member of a group.
        spec = {"group": "local", "task": [{"task": name, "custom_dataset": local.load, **missing}]}
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # progress of data sets and nltk's downloader
            task = manager.load([spec])["tasks"][name]
            if config.get("dataset_path") == NEEDS_SENTENCES:  # else it fails after everything was generated
                import nltk

                nltk.data.find("tokenizers/punkt_tab")
            return task
    except UserError:
        raise
    except Exception as error:  # whatever a task's own code, its packages or the hub raise
        source = " ".join(filter(None, (config.get("dataset_path"), config.get("dataset_name"))))
        first = next((line for line in str(error).splitlines() if line.strip(" *")), "").strip()
        if isinstance(error, ImportError):
            advice = "Install what is missing: pip install 'sft-go[eval]' has what the paper's suite needs"
        elif isinstance(error, LookupError) and "punkt" in str(error):
            advice = "Fetch it on a machine with a network: python -m nltk.downloader punkt_tab"
        else:
            advice = f"It needs the data set {source}: a hub that this machine can reach, or a copy under ${DATA_HOME}"
        raise UserError(
            f"task {name}: could not be opened ({type(error).__name__}: {first}). {advice}, or leave the task out "
            "(--columns names those of a suite to evaluate)."
        ) from error


def _one_of(values: dict[str, str]) -> str:
    """Return the value that all have, or what stands for the different ones."""
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    return hashlib.sha256(repr(sorted(values.items())).encode()).hexdigest()[:16]
