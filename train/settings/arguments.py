"""What the user said, from three places: a preset, a YAML file, the command line; the later wins.

What enters: the words of the command line. What leaves: the words that are flags, the settings that lie under them, and
the names that were set at all. The size of a step is settled here, before anything is built from it. Next: `config.py`
parses the flags over the settings. Imports nothing heavy.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import UserError
from train.settings.recipes import read_preset

RESUME = "--resume_from_checkpoint"
OF_AN_OBJECTIVE = ("lambda_max", "lambda_min", "worst_over", "ties", "select_over", "dynamic_groups")
OF_SHARDING = ("fsdp", "fsdp_config")  # what a preset asks for where there are several processes to share the model
LARGEST_DEVICE_BATCH = 8  # TRL's own default; the largest that is chosen here
STEP_FLAGS = ("global_batch_size", "per_device_train_batch_size", "gradient_accumulation_steps", "workers")


class Said(NamedTuple):
    """Everything that the user said."""

    flags: list[str]  # the command line without --config and --preset
    settings: dict[str, Any]  # what lies under the flags: the preset's settings and the file's
    given: frozenset[str]  # names that were set anywhere
    preset: str | None
    over_preset: tuple[str, ...]  # names of the preset that the user set otherwise


def gather(arguments: Sequence[str], num_processes: int) -> Said:
    """Read preset, file and flags.

    Raises:
        UserError: a file or preset that cannot be read, or a step that cannot be split as asked.
    """
    words = join_repeated(join_repeated(list(arguments), "--shards"), "--eval_groupers")
    words = _with_value(words, RESUME, "true")
    path, words = _take(words, "--config")
    preset, words = _take(words, "--preset")
    file = _read_file(path) if path else {}
    preset = preset or file.pop("preset", None)
    flags = _flag_names(words)
    above = flags | set(file)
    under = read_preset(preset) if preset else {}
    if num_processes == 1:
        under = {name: value for name, value in under.items() if name not in OF_SHARDING}
    over_preset = tuple(name for name in under if name in above)
    if "model_name_or_path" in above:
        under.pop("model", None)
    objective = _value(words, "objective") or file.get("objective")
    if objective is not None and objective != under.get("objective"):
        for name in OF_AN_OBJECTIVE:  # they belong to the preset's own objective
            if under.pop(name, None) is not None and name not in over_preset:
                over_preset += (name,)
    settings = {**under, **file}
    of_step = {name: _value(words, name) for name in STEP_FLAGS if name in flags}
    given = frozenset(flags | set(settings))
    settings |= split_step({**settings, **of_step}, num_processes)
    return Said(words, settings, given, preset, over_preset)


def split_step(said: dict[str, Any], num_processes: int) -> dict[str, int]:
    """Return the settings by which `global_batch_size` is split; none when it was not given.

    The batch of the step stays what it is, whatever the number of processes and the size that fits on a device:
    global = per_device_train_batch_size × gradient_accumulation_steps × processes.

    Raises:
        UserError: it does not divide.
    """
    total, device, accumulated, workers = (_whole(said, name) for name in STEP_FLAGS)
    if total is None:
        return {}
    num_processes = workers or num_processes
    asked = f"--global_batch_size {total}"
    if total % num_processes:
        raise UserError(f"{asked}: does not divide by {num_processes} processes. Start another number of them.")
    share = total // num_processes
    on = f" on {num_processes} processes" if num_processes > 1 else ""
    if device and accumulated and device * accumulated != share:
        raise UserError(
            f"{asked}: expected --per_device_train_batch_size × --gradient_accumulation_steps to be {share}{on}, found "
            f"{device} × {accumulated} = {device * accumulated}. Remove one of the two, or give --global_batch_size "
            f"{device * accumulated * num_processes}."
        )
    for name, size in ((STEP_FLAGS[1], device), (STEP_FLAGS[2], accumulated)):
        if size and share % size:
            raise UserError(
                f"{asked}: {share} documents{on or ' of a step'} do not divide by --{name} {size}. Choose a divisor of "
                f"{share}, or another --global_batch_size."
            )
    if not device:
        left = share // (accumulated or 1)
        device = left if accumulated else max(n for n in range(1, LARGEST_DEVICE_BATCH + 1) if left % n == 0)
    return {STEP_FLAGS[1]: device, STEP_FLAGS[2]: share // device}


def _whole(said: dict[str, Any], name: str) -> int | None:
    value = said.get(name)
    if value is None:
        return None
    try:
        number = int(str(value))
    except ValueError:
        number = 0
    if number < 1:
        raise UserError(f"--{name}: expected a whole number of at least 1, found {value!r}.")
    return number


def join_repeated(arguments: list[str], flag: str) -> list[str]:
    """Return `arguments` with the values of every `flag` behind its first occurrence (argparse keeps the last only)."""
    rest: list[str] = []
    values: list[str] = []
    first = None
    index = 0
    while index < len(arguments):
        word = arguments[index]
        index += 1
        if word != flag and not word.startswith(f"{flag}="):
            rest.append(word)
            continue
        first = len(rest) if first is None else first
        values += [word.partition("=")[2]] if "=" in word else []
        while index < len(arguments) and not arguments[index].startswith("--"):
            values.append(arguments[index])
            index += 1
    return rest if first is None else [*rest[:first], flag, *values, *rest[first:]]


def _with_value(words: list[str], flag: str, value: str) -> list[str]:
    """Return `words` with `value` behind a `flag` that stands alone."""
    alone = [
        index
        for index, word in enumerate(words)
        if word == flag and (index + 1 == len(words) or words[index + 1].startswith("--"))
    ]
    for index in reversed(alone):
        words = [*words[: index + 1], value, *words[index + 1 :]]
    return words


def _take(words: list[str], flag: str) -> tuple[str | None, list[str]]:
    """Return a flag's last value and the words without it."""
    value: str | None = None
    rest: list[str] = []
    index = 0
    while index < len(words):
        word = words[index]
        index += 1
        if word.startswith(f"{flag}="):
            value = word.partition("=")[2]
        elif word != flag:
            rest.append(word)
        elif index == len(words) or words[index].startswith("--"):
            raise UserError(f"{flag}: expected a value.")
        else:
            value = words[index]
            index += 1
    return value, rest


def _value(words: list[str], name: str) -> str | None:
    return _take(words, f"--{name}")[0] or _take(words, f"--{name.replace('_', '-')}")[0]


def _flag_names(words: list[str]) -> set[str]:
    names = [word[2:].partition("=")[0].replace("-", "_") for word in words if word.startswith("--")]
    return {name.removeprefix("no_") for name in names}


def _read_file(path: str) -> dict[str, Any]:
    import yaml

    try:
        loaded = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"--config: no such file: {path}.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"--config {path}: expected YAML ({error}).") from error
    if not isinstance(loaded, dict):
        raise UserError(f"--config {path}: expected names with values, found {type(loaded).__name__}.")
    environment = loaded.pop("env", {})  # as TRL's own parser does
    if not isinstance(environment, dict):
        raise UserError(f"--config {path}: expected names with values under env.")
    os.environ.update({name: str(value) for name, value in environment.items()})
    return loaded
