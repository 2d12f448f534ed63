"""The trainer's configuration: TRL's `SFTConfig`, the objective's settings, and what the command line makes of both.

What enters: flags, and under them a YAML file by `--config` and a `--preset`, with the same names. What leaves:
`RunSettings`, a `GOConfig` and TRL's `ModelConfig`, checked as far as they can be without touching shards or models,
with all problems in one error.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn

import torch
from trl import ModelConfig, SFTConfig, TrlParser

from common.errors import UserError, raise_together
from train.objectives import OBJECTIVES
from train.settings.arguments import gather
from train.settings.flags import ObjectiveSettings, RunSettings
from train.settings.refusals import flag_problems, training_problems


@dataclass
class GOConfig(ObjectiveSettings, SFTConfig):
    """`SFTConfig` and the objective's settings.

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
        if self.bf16 is None and not self.fp16:
            self.bf16 = not self.use_cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        super().__post_init__()

    def all_problems(self) -> list[str]:
        """Return what is wrong with the objective, and every setting that would bypass it or do nothing."""
        return training_problems(self, OBJECTIVES)


class Configuration(NamedTuple):
    """Everything `train run` was told."""

    run: RunSettings
    args: GOConfig
    model: ModelConfig
    given: frozenset[str]  # names that were set on the command line, in the YAML file or by the preset
    over_preset: tuple[str, ...] = ()  # settings of the preset that the user set otherwise


class _Parser(TrlParser):
    def error(self, message: str) -> NoReturn:
        """Say what is wrong without two hundred lines of usage."""
        raise UserError(f"{message}. `train run --help` lists the flags.")


def build_parser() -> TrlParser:
    """Return the parser of every flag: ours, SFTConfig's, ModelConfig's."""
    return _Parser((RunSettings, GOConfig, ModelConfig), prog="train run", allow_abbrev=False)


def parse(arguments: Sequence[str]) -> Configuration:
    """Parse the command line of `train run`.

    Raises:
        UserError: with every problem found.
    """
    said = gather(arguments, world_size())
    given = said.given
    parser = build_parser()
    unknown = parser.set_defaults_with_config(**said.settings)[::2]
    if unknown:
        where = "--config" if said.preset is None else f"--config or preset {said.preset}"
        raise UserError(f"{where}: no such flags: {', '.join(unknown)}. `train run --help-all` lists them.")
    try:
        run, args, model = parser.parse_args_into_dataclasses(args=said.flags)
    except UserError:
        raise
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(str(error)) from error
    raise_together(args.all_problems() + flag_problems(run, args, model, given))
    run.preset = said.preset
    args.resume_from_checkpoint = _resume(args.resume_from_checkpoint)
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
    return Configuration(run, args, model, given, said.over_preset)


def _resume(value: str | bool | None) -> str | bool | None:
    """Return `--resume_from_checkpoint`: True for the newest checkpoint, a directory, or None."""
    words = {"true": True, "yes": True, "1": True, "false": None, "no": None, "0": None, "none": None}
    return words.get(str(value).lower(), value)


def world_size() -> int:
    """Return the number of processes that the launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def command_line() -> list[str]:
    """Return the command as typed, for `run.json`."""
    return sys.argv
