"""The `train` command: a small dispatcher that pays for torch only when something is trained.

train run --shards <dir> [...]     fine-tune from annotated shards
train presets [show <name>]        the paper's recipes
"""

import dataclasses
import difflib
import importlib
import sys
import textwrap
from collections.abc import Sequence
from typing import get_args, get_origin

from common import completion
from common.command import run_and_exit
from common.errors import UserError
from train.settings.flags import GroupingSettings, RunSettings

# name: its line of help, and the function that takes the words after it and returns an exit status
COMMANDS = {
    "run": (
        "train: `train run --shards <dir> --model <id, directory or tiny> --objective go`",
        "train.cli:run_command",
    ),
    "sweep": (
        "many runs into one directory: `train sweep SWEEP.yaml --out <dir>`",
        "train.sweeps.command:sweep_command",
    ),
    "compare": (
        "runs set against a baseline, with intervals: `train compare sweep --html report.html`",
        "train.comparison.command:main",
    ),
    "evaluate": (
        "what a run, a sweep or any checkpoint has learned: benchmarks, held-out documents",
        "train.evaluation.command:run",
    ),
    "inspect": (
        "what training did to the tokens: `train inspect runs/mine --html tokens.html`",
        "train.inspection.command:main",
    ),
    "presets": ("the paper's recipes: `train presets`, `train presets show <name>`", "train.cli:presets_command"),
}

# this project's own flags, which can be known without torch: each field of these is one
OWN_SETTINGS = (("what to train on", RunSettings), ("what to minimise", GroupingSettings))

USAGE = """usage: train <command> [flags]

Fine-tune a language model from the shards that `annotate run` makes.

commands:
{commands}

`train run --help` lists the flags of this project; `train run --help-all` adds every flag of TRL's SFTConfig and
ModelConfig, all of which work under their own names, on the command line or in a YAML file given with --config.
Every other command has its own --help; `train --install-completion` completes commands and flags in your shell."""

PRESETS_USAGE = """usage: train presets [show <name>]

The recipes of the paper's appendix F: a table, or one preset's file with what was chosen where the paper is silent.

`train run --preset <name> --shards <dir>` trains by one; other flags win over it, and the batch stays what it is."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 when all is well, 1 for an error that the user can act on."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    goes_on = "; --resume_from_checkpoint goes on from the last checkpoint" if words[:1] == ["run"] else ""
    unread = f"stopped: nothing reads the output{goes_on}" if goes_on else ""
    run_and_exit(lambda: dispatch(words), "error", f"interrupted{goes_on}", unread)


def dispatch(words: list[str]) -> int:
    """Run one command and return its exit status."""
    if completion.is_asked("train", words):
        from train.completion import completions

        completion.answer("train", words, completions(COMMANDS))
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE.format(commands="\n".join(f"  {name:<9} {text}" for name, (text, _) in COMMANDS.items())))
        return 0 if words else 1
    command, rest = words[0], words[1:]
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UserError(
            f"unknown command {command!r}; expected: {', '.join(COMMANDS)}.{hint} `train --help` says more."
        )
    module, function = COMMANDS[command][1].split(":")
    return getattr(importlib.import_module(module), function)(rest)


def presets_command(rest: list[str]) -> int:
    """Show the presets."""
    from train.settings.recipes import preset_table, preset_text

    if rest in (["-h"], ["--help"]):
        print(PRESETS_USAGE)
    elif not rest or rest == ["list"]:
        print("\n".join([*preset_table(), "", PRESETS_USAGE.splitlines()[-1]]))
    elif rest[0] == "show" and len(rest) == 2:
        print(preset_text(rest[1]), end="")
    else:
        raise UserError(f"train presets {' '.join(rest)}: expected `train presets` or `train presets show <name>`.")
    return 0


def run_command(rest: list[str]) -> int:
    """Train."""
    if "-h" in rest or "--help" in rest:
        print(run_help())
        return 0
    from train.objectives import DEFAULT_OBJECTIVE, OBJECTIVES
    from train.settings.early import check_early, underscored

    rest = underscored(rest)
    is_help = "--help-all" in rest
    if not is_help:
        check_early(rest, OBJECTIVES, DEFAULT_OBJECTIVE)
    from train import run as training

    training.prepare_process()
    if is_help:
        training.print_all_flags()
        return 0
    from train.launch import ray as ray_launch

    if wish := ray_launch.wanted(rest):
        ray_launch.launch(rest, wish)
        return 0
    training.run(training.configure(rest))
    return 0


def run_help() -> str:
    """Return the help text of this project's own flags, without importing torch."""
    from train.objectives import DEFAULT_OBJECTIVE, OBJECTIVES

    lines = ["usage: train run --shards DIR [DIR ...] [flags]", ""]
    for title, settings in OWN_SETTINGS:
        lines.append(f"{title}:")
        for field in dataclasses.fields(settings):
            lines += _flag(field)
        lines.append("")
    lines.append(f"objectives (default {DEFAULT_OBJECTIVE}), each with its own flags:")
    for name, kind in OBJECTIVES.items():
        lines += ["", *_wrapped(f"{name}: {kind.summary}.{kind.paper and f' {kind.paper}.'}", "  ")]
        for field in dataclasses.fields(kind.Settings):
            lines += [f"    {line}" for line in _flag(field)]
    lines.append("")
    lines += [
        "and every flag of TRL's SFTConfig and ModelConfig under its own name, for example:",
        "  --output_dir runs/mine --max_steps 30 --learning_rate 1e-5 --num_train_epochs 15",
        "  --per_device_train_batch_size 8 --gradient_accumulation_steps 8 --packing true --seed 1",
        "  --resume_from_checkpoint   go on from the newest checkpoint of --output_dir, or from the one given",
        "  --use_peft true --lora_r 16   train an adapter",
        "  --config run.yaml          the same names in a YAML file; flags on the command line win",
        "  --help-all                 every flag with its text",
    ]
    return "\n".join(lines)


def _flag(field: dataclasses.Field) -> list[str]:
    kind = field.type
    choices = "|".join(str(choice) for part in (kind, *get_args(kind)) for choice in _literals(part))
    default = "" if field.default in (None, dataclasses.MISSING) else f" Default {field.default}."
    text = f"{field.metadata['help']}{default}"
    return [f"  --{field.name} {choices}".rstrip(), *_wrapped(text, "      ")]


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, 104, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def _literals(kind: object) -> tuple:
    from typing import Literal

    return get_args(kind) if get_origin(kind) is Literal else ()


if __name__ == "__main__":
    main()
