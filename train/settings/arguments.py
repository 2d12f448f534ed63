"""What the user said, from three places: a preset, a YAML file, the command line; the later wins.

What enters: the words of the command line. What leaves: the words that are flags, the settings that lie under them, and
the names that were set at all. The size of a step is settled here, before anything is built from it. Next: `config.py`
parses the flags over the settings. Imports nothing heavy.
"""

import argparse
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from common.errors import UserError
from train.settings.recipes import read_preset

RESUME = "resume_from_checkpoint"
# Its values that name no checkpoint: True for the newest one, None for none.
RESUME_WORDS = {"true": True, "yes": True, "1": True, "false": None, "no": None, "0": None, "none": None}
REPEATED = ("shards", "eval_groupers")  # flags with several values, which may stand together or apart
OF_EVERY_OBJECTIVE = ("ties",)  # chosen with an objective, like the objective's own flags
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


def gather(
    arguments: Sequence[str],
    num_processes: int,
    given_flags: Callable[[list[str]], frozenset[str]],
    objective_flags: Sequence[str] = (),
) -> Said:
    """Read preset, file and flags.

    Args:
        arguments: the words of the command line.
        num_processes: that the step is shared by.
        given_flags: returns the names of all flags that words set.
        objective_flags: the flags that belong to an objective; a preset's go with its objective.

    Raises:
        UserError: a file or preset that cannot be read, or a step that cannot be split as asked.
    """
    found, words = scan(arguments, ("config", "preset", RESUME, *REPEATED))
    for name in ("config", "preset"):
        if name in found and not found[name]:
            raise UserError(f"--{name}: expected a value.")
    for name in REPEATED:
        words += [f"--{name}", *found[name]] if name in found else []
    if RESUME in found:
        words += [f"--{RESUME}", value_of(found, RESUME) or "true"]
    path, preset = value_of(found, "config"), value_of(found, "preset")
    file = _read_file(path) if path else {}
    preset = preset or file.pop("preset", None)
    flags = given_flags(words)
    above = flags | set(file)
    under = read_preset(preset) if preset else {}
    if num_processes == 1:
        under = {name: value for name, value in under.items() if name not in OF_SHARDING}
    over_preset = tuple(name for name in under if name in above)
    if "model_name_or_path" in above:
        under.pop("model", None)
    chosen, _ = scan(words, ("objective", *STEP_FLAGS))
    objective = value_of(chosen, "objective") or file.get("objective")
    if objective is not None and objective != under.get("objective"):
        for name in (*OF_EVERY_OBJECTIVE, *objective_flags):  # they belong to the preset's own objective
            if under.pop(name, None) is not None and name not in over_preset:
                over_preset += (name,)
    settings = {**under, **file}
    of_step = {name: value_of(chosen, name) for name in STEP_FLAGS if name in chosen}
    given = frozenset(flags | set(settings))
    settings |= split_step({**settings, **of_step}, num_processes)
    return Said(words, settings, given, preset, over_preset)


def look_up(arguments: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    """Return what flags, file and preset say of `names`, without asking what other flags there are."""
    found, _ = scan(arguments, ("config", "preset", *names))
    path, preset = value_of(found, "config"), value_of(found, "preset")
    file = _read_file(path) if path else {}
    preset = preset or file.get("preset")
    settings = {**(read_preset(preset) if preset else {}), **file}
    return {name: value_of(found, name) if name in found else settings.get(name) for name in names}


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


def world_size() -> int:
    """Return the number of processes that the launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


class _Scanner(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say what is wrong without a usage of flags that the user does not see."""
        raise UserError(f"{message}. `train run --help` lists the flags.")


def scan(words: Sequence[str], names: Iterable[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Return the values of the flags `names` that were given, and the words without them.

    Of a flag that stands alone, no value; of one of `REPEATED`, the values of all its occurrences, else of the last.
    """
    scanner = _Scanner(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for name in names:
        spellings = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
        action = "extend" if name in REPEATED else "store"
        scanner.add_argument(*spellings, dest=name, nargs="*", action=action)
    found, rest = scanner.parse_known_args(list(words))
    return vars(found), rest


def value_of(found: Mapping[str, list[str]], name: str) -> str | None:
    """Return a flag's value as `scan` found it: None where it was not given, "true" where it stands alone."""
    values = found.get(name)
    return None if values is None else values[0] if values else "true"


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
