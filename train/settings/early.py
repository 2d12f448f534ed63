"""What is wrong with the flags of `train run`, said before torch is imported: in less than a second.

What enters: the words of the command line, and the objectives. What leaves: one `UserError` with all that is wrong, or
nothing. The names and types of TRL's and transformers' flags are read from their source files, which costs a tenth of a
second where importing them takes many. Next: `train.settings.config` parses.

What this lets pass is still checked by the parser; what it refuses, the parser would refuse, too.
"""

import ast
import functools
import importlib.util
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from common.errors import UserError, raise_together
from common.hints import did_you_mean, missing_path
from train.settings.arguments import REPEATED, gather, scan, value_of, world_size
from train.settings.flags import GroupingSettings, RunSettings

SOURCES = (
    ("trl", "trainer/sft_config.py"),
    ("trl", "trainer/base_config.py"),
    ("trl", "trainer/model_config.py"),
    ("transformers", "training_args.py"),
)
ALSO = ("config", "preset", "resume_from_checkpoint", "help", "help-all")
TRACKERS = {"wandb": "wandb", "trackio": "trackio", "tensorboard": "tensorboard", "mlflow": "mlflow"}


def underscored(words: Sequence[str]) -> list[str]:
    """Return the words with flags in one spelling: `--max-length 9` is `--max_length 9`."""
    found = []
    for word in words:
        name, separator, value = word.partition("=")
        found.append(name.replace("-", "_").replace("__", "--", 1) + separator + value if word[:2] == "--" else word)
    return ["--help-all" if word == "--help_all" else word for word in found]


def check_early(words: Sequence[str], objectives: Mapping[str, Any], default: str) -> None:
    """Check the words, spelled by `underscored`.

    Args:
        words: the command line.
        objectives: name to class, with `Settings`.
        default: the objective where none is named.

    Raises:
        UserError: flags that do not exist, values of the wrong kind, numbers out of their range, paths where nothing
            is, trackers that are not installed; or else a column that the shards do not have.
    """
    kinds, theirs = _own_flags(objectives), _their_flags()
    known = {*kinds, *theirs, *ALSO, *_CHECKS}
    found, rest = scan(words, known)
    problems = []
    for name, values in found.items():
        if name in kinds:
            problems += _wrong_kind(name, values, kinds[name])
        elif name in theirs:
            problems += _wrong_number(name, values, theirs[name])
        if name in _CHECKS:
            problems += _CHECKS[name](values)
    chosen = value_of(found, "objective")
    if chosen is not None and chosen not in objectives:
        problems.append(
            f"--objective {chosen}: expected one of {', '.join(objectives)}.{did_you_mean(chosen, objectives)}"
        )
    if theirs:
        problems += _unknown(rest, known)
    try:
        problems += _out_of_range(words, kinds, objectives, default)
    except UserError as error:  # a file, a preset, or a step that cannot be split
        problems.append(str(error))
    raise_together(problems)
    raise_together(_wrong_column(found))


def flag_names(objectives: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of all flags: ours, the objectives', TRL's; none where TRL's cannot be read from its source."""
    theirs = _their_flags()
    return frozenset({*_own_flags(objectives), *theirs} if theirs else ())


def _own_flags(objectives: Mapping[str, Any]) -> dict[str, Any]:
    """Return the type of every flag of this project."""
    own = (RunSettings, GroupingSettings, *(kind.Settings for kind in objectives.values()))
    return {flag.name: flag.type for settings in own for flag in fields(settings)}


@functools.cache
def _their_flags() -> dict[str, str]:
    """Return the type of every flag of TRL's and transformers', as their sources spell it."""
    found: dict[str, str] = {}
    for package, file in SOURCES:
        spec = importlib.util.find_spec(package)
        path = Path(spec.submodule_search_locations[0]) / file if spec and spec.submodule_search_locations else None
        if path is None or not path.is_file():
            return {}  # another release of the library: leave it to the parser
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            for item in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                    found[item.target.id] = ast.unparse(item.annotation)
    return found


def _unknown(rest: Sequence[str], known: Collection[str]) -> list[str]:
    """Check the words that no known flag has taken; `--no_` in front of a flag's name switches it off."""
    names = [word[2:].partition("=")[0] for word in rest if word.startswith("--")]
    return [
        f"--{name}: no such flag.{did_you_mean(name, known).replace('mean ', 'mean --')} `train run --help` lists them."
        for name in names
        if name.removeprefix("no_") not in known
    ]


def _wrong_kind(name: str, values: list[str], kind: Any) -> list[str]:
    """Check the value of a flag of this project."""
    options = [part for part in (get_args(kind) or (kind,)) if part is not type(None)]
    if get_origin(kind) is Literal:
        options = [kind]
    if bool in options:
        return [] if not values or values[0].lower() in _YES + _NO else [f"--{name}: expected true or false."]
    if not values:
        return [f"--{name}: expected a value."]
    for option in options:
        if get_origin(option) is Literal and values[0] not in map(str, get_args(option)):
            expected = list(map(str, get_args(option)))
            return [f"--{name} {values[0]}: expected one of {', '.join(expected)}.{did_you_mean(values[0], expected)}"]
    numbers = [option for option in options if option in (int, float)]
    return _not_a_number(name, values[0], float in numbers) if numbers and str not in options else []


def _wrong_number(name: str, values: list[str], annotation: str) -> list[str]:
    """Check the value of a flag of TRL's, where it must be a number."""
    parts = {part.strip() for part in annotation.replace("Optional[", "").rstrip("]").split("|")} - {"None"}
    if parts and parts <= {"int", "float"}:
        return _not_a_number(name, values[0], "float" in parts) if values else [f"--{name}: expected a value."]
    return []


def _not_a_number(name: str, value: str, is_float: bool) -> list[str]:
    if value.lower() in ("none", "null"):
        return []
    try:
        float(value) if is_float else int(value)
    except ValueError:
        return [f"--{name}: expected a {'' if is_float else 'whole '}number, found {value!r}."]
    return []


_YES, _NO = ("true", "yes", "1", "t", "y"), ("false", "no", "0", "f", "n")


def _check_shards(values: list[str]) -> list[str]:
    from common.manifest import load_manifest

    problems = []
    for value in values:
        if "://" in value:
            continue
        path = Path(value)
        if not path.is_dir():
            beside = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
            what = "is a file" if path.exists() else "no such directory"
            problems.append(
                f"--shards {value}: {what}. Expected what `annotate run --out` made.{did_you_mean(path.name, beside)}"
            )
            continue
        try:
            load_manifest(path)
        except UserError as error:
            problems.append(f"--shards {error}")
    return problems


def _check_model(values: list[str]) -> list[str]:
    problem = missing_path(values[0]) if values else None
    return [f"--model {values[0]}: {problem}"] if problem else []


def _check_report_to(values: list[str]) -> list[str]:
    return [
        f"--report_to {value}: the package {TRACKERS[value]} is not installed here. pip install {TRACKERS[value]}, or "
        "leave the flag out: metrics.jsonl and loss_curves.png are always written."
        for value in values
        if value in TRACKERS and importlib.util.find_spec(TRACKERS[value]) is None
    ]


def _check_output(values: list[str]) -> list[str]:
    if not values:
        return []
    path = Path(values[0]).expanduser().absolute()
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    if not there.is_dir():
        return [f"--output_dir {values[0]}: {there} is a file. Choose a directory."]
    if not os.access(there, os.W_OK | os.X_OK):
        return [f"--output_dir {values[0]}: no permission to write into {there}. Choose another directory."]
    return []


_CHECKS = {
    "shards": _check_shards,
    "model": _check_model,
    "model_name_or_path": _check_model,
    "report_to": _check_report_to,
    "output_dir": _check_output,
}


def _wrong_column(found: Mapping[str, list[str]]) -> list[str]:
    """Check --grouper against the columns of the first shards."""
    from common.manifest import load_manifest

    wanted, given = value_of(found, "grouper"), found.get("shards")
    if wanted is None or not given or "://" in given[0]:
        return []
    shards = given[0]
    columns = list(load_manifest(shards).columns)
    if wanted in columns:
        return []
    return [f"--grouper {wanted}: {shards} has the columns {', '.join(columns)}.{did_you_mean(wanted, columns)}"]


def _out_of_range(
    words: Sequence[str], kinds: Mapping[str, Any], objectives: Mapping[str, Any], default: str
) -> list[str]:
    """Check our own settings by what they say of themselves, with a file's and a preset's under the flags."""
    of_objectives = {flag.name for kind in objectives.values() for flag in fields(kind.Settings)}
    said = gather(words, world_size(), lambda rest: frozenset(scan(rest, kinds)[0]), tuple(of_objectives))
    found, _ = scan(said.flags, kinds)
    values = said.settings | {name: found[name] if name in REPEATED else value_of(found, name) for name in found}
    chosen = values.get("objective") or default
    if chosen not in objectives:
        return []  # a file's; the parser names them
    problems: list[str] = []
    for settings in (RunSettings, GroupingSettings, objectives[chosen].Settings):
        own = [flag for flag in fields(settings) if flag.name in values]
        try:
            made = settings(**{flag.name: _read(values[flag.name], flag.type) for flag in own})
        except (TypeError, ValueError):  # a file's value of the wrong kind, which the parser names
            continue
        problems += made.problems()
    return problems


def _read(value: Any, kind: Any) -> Any:
    """Return a setting's value, a flag's word or what stands in a file, as the parser would.

    Raises:
        TypeError, ValueError: it is of another kind.
    """
    options = get_args(kind) or (kind,)
    if bool in options:
        return str(value).lower() in _YES
    number = next((option for option in (int, float) if option in options), None)
    return value if number is None or value is None else number(value)
