"""What the shell may complete on `train`'s command line: commands, flags, values of flags that have few.

What enters: the commands, as `train.cli` lists them. What leaves: their flags, as `common.completion` takes them; TRL's
by name, from its source files. Imports nothing heavy: the shell waits.
"""

import argparse
import dataclasses
import importlib
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

from common.completion import Command, Flag
from train.objectives import OBJECTIVES
from train.settings.early import TRACKERS, flag_names
from train.settings.flags import GroupingSettings, RunSettings
from train.settings.recipes import preset_names

ALSO = (
    Flag("--config", "A YAML file of flags."),
    Flag("--help", "This project's flags.", stands_alone=True),
    Flag("--help-all", "Every flag.", stands_alone=True),
)


def completions(commands: Mapping[str, tuple[str, str]]) -> dict[str, Command]:
    """Return what each command takes.

    Args:
        commands: name to its line of help, and "module:function"; a module with `build_parser` says its flags by it.
    """
    found = {}
    for name, (text, where) in commands.items():
        build = getattr(importlib.import_module(where.partition(":")[0]), "build_parser", None)
        found[name] = Command(text, tuple(_parsed(build())) if build else ())
    found["run"] = Command(found["run"].help, tuple(_run_flags()))
    found["presets"] = Command(found["presets"].help, words=("show", *preset_names()))
    return found


def _run_flags() -> Iterator[Flag]:
    """Yield the flags of `train run`: ours with their help, then TRL's."""
    values: dict[str, tuple[str, ...]] = {
        "objective": tuple(OBJECTIVES),
        "preset": tuple(preset_names()),
        "report_to": ("none", *TRACKERS),
    }
    own = (RunSettings, GroupingSettings, *(kind.Settings for kind in OBJECTIVES.values()))
    fields = {field.name: field for settings in own for field in dataclasses.fields(settings)}
    for name, field in fields.items():
        yield Flag(f"--{name}", field.metadata["help"], values.pop(name, ()) or _choices(field.type))
    for name in sorted(flag_names(OBJECTIVES) - set(fields)):
        yield Flag(f"--{name}", values=values.get(name, ()))
    yield from ALSO


def _choices(kind: Any) -> tuple[str, ...]:
    """Return the values that a setting's type names."""
    parts = (kind, *get_args(kind))
    if bool in parts:
        return ("true", "false")
    return tuple(str(value) for part in parts if get_origin(part) is Literal for value in get_args(part))


def _parsed(parser: argparse.ArgumentParser) -> Iterator[Flag]:
    """Yield the flags of a parser."""
    for action in parser._actions:
        for name in action.option_strings[-1:]:  # the long one
            text = "" if action.help in (None, argparse.SUPPRESS) else str(action.help)
            yield Flag(name, text, tuple(map(str, action.choices or ())), action.nargs == 0)
