"""What is wrong with the flags of `train run`, said before torch is imported: in less than a second.

What enters: the words of the command line, and the dataclasses whose fields are this project's flags. What leaves: one
`UserError` with all that is wrong, or nothing. The names and types of TRL's and transformers' flags are read from their
source files, which costs a tenth of a second where importing them takes many. Next: `train.settings.config` parses.

What this lets pass is still checked by the parser; what it refuses, the parser would refuse, too.
"""

import ast
import dataclasses
import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from common.errors import UserError, raise_together
from common.hints import did_you_mean, missing_path

SOURCES = (("trl", "trainer/sft_config.py"), ("trl", "trainer/base_config.py"), ("trl", "trainer/model_config.py"))
SOURCES += (("transformers", "training_args.py"),)
ALSO = ("config", "preset", "resume_from_checkpoint", "help", "help-all")
TRACKERS = {"wandb": "wandb", "trackio": "trackio", "tensorboard": "tensorboard", "mlflow": "mlflow"}


def underscored(words: Sequence[str]) -> list[str]:
    """Return the words with flags in one spelling: `--max-length 9` is `--max_length 9`."""
    found = []
    for word in words:
        name, separator, value = word.partition("=")
        found.append(name.replace("-", "_").replace("__", "--", 1) + separator + value if word[:2] == "--" else word)
    return ["--help-all" if word == "--help_all" else word for word in found]


def check_early(words: Sequence[str], own: Sequence[type], objectives: Sequence[str] = ()) -> None:
    """Check the words, spelled by `underscored`.

    Raises:
        UserError: flags that do not exist, values of the wrong kind, paths where nothing is, trackers that are not
            installed; all of them.
    """
    kinds = {field.name: field.type for settings in own for field in dataclasses.fields(settings)}
    theirs = _their_flags()
    problems = []
    if not words:
        problems.append("--shards: expected one or more directories made by `annotate run`, found none.")
    for name, values in _flags(words):
        if name in kinds:
            problems += _wrong_kind(name, values, kinds[name])
        elif name in theirs:
            problems += _wrong_number(name, values, theirs[name])
        elif name.removeprefix("no_") not in {*kinds, *theirs, *ALSO} and theirs:
            hint = did_you_mean(name, [*kinds, *theirs, *ALSO]).replace("mean ", "mean --")
            problems.append(f"--{name}: no such flag.{hint} `train run --help` lists them.")
        check = _CHECKS.get(name)
        if check is not None:
            problems += check(values)
        if name == "objective" and objectives and values and values[0] not in objectives:
            problems.append(
                f"--objective {values[0]}: expected one of {', '.join(objectives)}."
                f"{did_you_mean(values[0], objectives)}"
            )
    raise_together(problems)
    problems += _wrong_column(words)
    raise_together(problems)


def flag_names(own: Sequence[type]) -> frozenset[str]:
    """Return the names of all flags: those of `own` and TRL's; none where TRL's cannot be read from its source."""
    theirs = _their_flags()
    return frozenset(
        {field.name for settings in own for field in dataclasses.fields(settings)} | set(theirs) if theirs else ()
    )


def _flags(words: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each flag with the words after it."""
    name, values = "", []
    for word in [*words, "--"]:
        if not word.startswith("--"):
            values.append(word)
            continue
        if name:
            yield name, values
        name, separator, value = word[2:].partition("=")
        values = [value] if separator else []


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


def _wrong_kind(name: str, values: list[str], kind: Any) -> list[str]:
    """Check the value of a flag of this project."""
    options = [part for part in (get_args(kind) or (kind,)) if part is not type(None)]
    if get_origin(kind) is Literal:
        options = [kind]
    if bool in options:
        return [] if not values or values[0].lower() in _BOOLEANS else [f"--{name}: expected true or false."]
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


_BOOLEANS = ("true", "false", "yes", "no", "1", "0", "t", "f", "y", "n")


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


def _wrong_column(words: Sequence[str]) -> list[str]:
    """Check --grouper against the columns of the first shards."""
    from common.manifest import load_manifest

    given = dict(_flags(words))
    if not given.get("grouper") or not given.get("shards") or "://" in given["shards"][0]:
        return []
    columns = list(load_manifest(given["shards"][0]).columns)
    wanted = given["grouper"][0]
    if wanted in columns:
        return []
    return [
        f"--grouper {wanted}: {given['shards'][0]} has the columns {', '.join(columns)}.{did_you_mean(wanted, columns)}"
    ]
