"""The trainer's configuration: TRL's `SFTConfig`, the objective, and what the command line makes of both.

What enters: flags, and under them a YAML file by `--config` and a `--preset`, with the same names; the registry of
objectives, whose flags are flags too. What leaves: `RunSettings`, a `GOConfig`, TRL's `ModelConfig` and an objective,
checked as far as they can be without touching shards or models, with all problems in one error.
"""

import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Any, NamedTuple, NoReturn

import torch
from trl import ModelConfig, SFTConfig, TrlParser

from common.errors import UserError, raise_together
from train.settings.arguments import RESUME_WORDS, gather, world_size
from train.settings.flags import GroupingSettings, RunSettings
from train.settings.refusals import flag_problems, training_problems


@dataclass
class GOConfig(GroupingSettings, SFTConfig):
    """`SFTConfig`, the objective's name, and how scores become groups.

    Defaults that differ from TRL's: `logging_steps` 1 (the curves are the point), `report_to` none, `max_length` None
    (the shards' own), `bf16` only where there is an accelerator.
    """

    logging_steps: float = field(
        default=1, metadata={"help": "Log every X steps; a number below 1 is a share of all steps."}
    )
    report_to: None | str | list[str] = field(  # noqa: RUF036 (TRL's parser needs None first)
        default="none", metadata={"help": "Trackers to report to, such as wandb, trackio or tensorboard."}
    )
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "Cut documents to this many tokens, and the length of a packed row. Default: the shards' own."
        },
    )

    def __post_init__(self):
        """Settle what depends on the machine, then let TRL check the rest."""
        if world_size() > 1 and not torch.accelerator.is_available():
            self.use_cpu = True  # without it, accelerate would not join the processes, and each would train alone
        if self.bf16 is None and not self.fp16:  # type: ignore[has-type]  # fields of transformers
            self.bf16 = not self.use_cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        super().__post_init__()

    def problems_with(self, objective: Any) -> list[str]:
        """Return what is wrong with the settings of an `Objective`, and each that would bypass it or do nothing."""
        return training_problems(self, objective)


class Registry(NamedTuple):
    """The objectives that there are, as this room needs to know them."""

    objectives: Mapping[str, Any]  # name: a class with `Settings`, built from an instance of these
    default: str


class Configuration(NamedTuple):
    """Everything `train run` was told."""

    run: RunSettings
    args: GOConfig
    model: ModelConfig
    objective: Any  # an `Objective`
    given: frozenset[str]  # names that were set on the command line, in the YAML file or by the preset
    over_preset: tuple[str, ...] = ()  # settings of the preset that the user set otherwise


class _Parser(TrlParser):
    def error(self, message: str) -> NoReturn:
        """Say what is wrong without two hundred lines of usage."""
        raise UserError(f"{message}. `train run --help` lists the flags.")


def build_parser(registry: Registry) -> TrlParser:
    """Return the parser of every flag: ours, SFTConfig's, ModelConfig's, and the objectives'."""
    return _Parser(
        (RunSettings, GOConfig, ModelConfig, _objective_flags(registry)), prog="train run", allow_abbrev=False
    )


def objective_fields(registry: Registry) -> dict[str, tuple[Any, list[str]]]:
    """Return each flag that belongs to an objective, with its field and the names of the objectives that have it."""
    found: dict[str, tuple[Any, list[str]]] = {}
    for name, kind in registry.objectives.items():
        for flag in fields(kind.Settings):
            first, names = found.setdefault(flag.name, (flag, []))
            assert first.type == flag.type, f"--{flag.name} means two things: for {names[0]} and for {name}"
            names.append(name)
    return found


def _objective_flags(registry: Registry) -> type:
    """Return a dataclass with every objective's flags, each once."""
    return make_dataclass(
        "ObjectiveFlags",
        [
            (
                name,
                flag.type,
                field(
                    default=flag.default,
                    metadata={"help": f"{', '.join(names)}: {flag.metadata['help']}"},
                ),
            )
            for name, (flag, names) in objective_fields(registry).items()
        ],
    )


def parse(arguments: Sequence[str], registry: Registry) -> Configuration:
    """Parse the command line of `train run`.

    Raises:
        UserError: with every problem found.
    """
    own = objective_fields(registry)
    parser = build_parser(registry)
    said = gather(arguments, world_size(), lambda words: _given(parser, words), tuple(own))
    unknown = parser.set_defaults_with_config(**said.settings)[::2]
    if unknown:
        where = "--config" if said.preset is None else f"--config or preset {said.preset}"
        raise UserError(f"{where}: no such flags: {', '.join(unknown)}. `train run --help-all` lists them.")
    try:
        run, args, model, flags = parser.parse_args_into_dataclasses(args=said.flags)
    except UserError:
        raise
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(str(error)) from error
    given = said.given
    objective, problems = _objective(args, flags, given, own, registry)
    if objective is not None:
        problems += args.problems_with(objective) + flag_problems(run, args, model, objective, given)
    raise_together(problems)
    run.preset = said.preset
    resume = args.resume_from_checkpoint  # the newest (True), a directory, or None
    args.resume_from_checkpoint = RESUME_WORDS.get(str(resume).lower(), resume)
    if model.model_name_or_path and not run.model:
        run.model = model.model_name_or_path
    run.model = run.model or "tiny"
    if run.eval_fraction and "eval_strategy" not in given and "do_eval" not in given:
        args.eval_strategy = type(args.eval_strategy)("epoch")
        args.do_eval = True
    if "dataloader_pin_memory" not in given and not torch.cuda.is_available():
        args.dataloader_pin_memory = False
    if run.model == "tiny":
        # For trying things out: a small random model learns at a larger rate and has nothing to checkpoint.
        if "learning_rate" not in given:
            args.learning_rate = 1e-3
        if not given & {"gradient_checkpointing", "activation_checkpointing"}:
            args.gradient_checkpointing = args.activation_checkpointing = False
    return Configuration(run, args, model, objective, given, said.over_preset)


def _given(parser: TrlParser, words: Sequence[str]) -> frozenset[str]:
    """Return the names of the flags that `words` set."""
    unset = object()
    names = {flag.name for kind in parser.dataclass_types for flag in fields(kind) if flag.init}
    # argparse sets a default only where the namespace has no value yet.
    found, _ = parser.parse_known_args(list(words), Namespace(**dict.fromkeys(names, unset)))
    return frozenset(name for name in names if getattr(found, name) is not unset)


def _objective(
    args: GOConfig, flags: Any, given: frozenset[str], own: Mapping[str, Any], registry: Registry
) -> tuple[Any, list[str]]:
    """Return the objective with the settings that were given, and what is wrong with the choice."""
    args.objective = args.objective or registry.default
    if args.objective not in registry.objectives:
        names = ", ".join(registry.objectives)
        return None, [f"--objective: expected one of {names}, found {args.objective!r}."]
    kind = registry.objectives[args.objective]
    known = {flag.name for flag in fields(kind.Settings)}
    problems = [
        f"--{name}: objective {args.objective} has no such setting ({', '.join(own[name][1])} has); remove the flag."
        for name in own
        if name in given and name not in known
    ]
    settings = kind.Settings(**{name: getattr(flags, name) for name in known & given})
    return kind(settings), problems


def command_line() -> list[str]:
    """Return the command as typed, for `run.json`."""
    return sys.argv
