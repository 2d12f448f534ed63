"""The trainer's configuration: TRL's `SFTConfig`, the objective's settings, and what the command line makes of both.

What enters: flags, and a YAML file by `--config` with the same names. What leaves: `RunSettings`, a `GOConfig` and
TRL's `ModelConfig`, checked as far as they can be without touching shards or models, with all problems in one error.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

import torch
from trl import ModelConfig, SFTConfig, TrlParser

from common.errors import UserError, raise_together
from train.objectives import OBJECTIVES
from train.settings import ObjectiveSettings, RunSettings

# Flags of SFTConfig that make text into tokens. Shards hold tokens already.
SETTLED_BY_SHARDS = (
    "dataset_text_field",
    "dataset_kwargs",
    "eos_token",
    "pad_token",
    "chat_template_path",
    "completion_only_loss",
    "assistant_only_loss",
)


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
        if self.bf16 is None and not self.fp16:
            self.bf16 = not self.use_cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        super().__post_init__()

    def all_problems(self) -> list[str]:
        """Return what is wrong with the objective, and every setting that would bypass it or do nothing."""
        found = self.problems(tuple(OBJECTIVES))
        defaults = {f.name: f.default for f in SFTConfig.__dataclass_fields__.values()}
        for name in SETTLED_BY_SHARDS:
            if getattr(self, name) not in (defaults[name], None, False):
                found.append(
                    f"--{name}: the shards fix text, template and supervised tokens; remove the flag, or annotate "
                    "again with `annotate run`."
                )
        if (self.liger_kernel_config or {}).get("fused_linear_cross_entropy"):
            found.append("--liger_kernel_config: fused_linear_cross_entropy computes its own loss; set it to false.")
        if self.packing and self.packing_strategy == "wrapped":
            found.append("--packing_strategy wrapped: cuts documents apart, so groups would mix; use bfd.")
        if self.objective == "sft" or self.objective not in OBJECTIVES:
            return found
        bypass = f"would bypass objective {self.objective}"
        if self.label_smoothing_factor:
            found.append(f"--label_smoothing_factor: {bypass}; remove it, or use --objective sft.")
        if self.loss_type != "nll":
            found.append(f"--loss_type {self.loss_type}: {bypass}; use nll, or --objective sft.")
        if not self.average_tokens_across_devices:
            found.append(
                f"--average_tokens_across_devices false: {bypass}, which counts the tokens of all ranks; remove it."
            )
        if str(self.optim).endswith(("lomo", "adalomo")):
            found.append(f"--optim {self.optim}: updates during the backward pass, which {bypass}; choose another.")
        return found


class Configuration(NamedTuple):
    """Everything `train run` was told."""

    run: RunSettings
    args: GOConfig
    model: ModelConfig
    given: frozenset[str]  # names that the user set, on the command line or in the YAML file


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
    arguments = join_repeated(list(arguments), "--shards")
    given = set(_given(arguments))
    try:
        run, args, model = build_parser().parse_args_and_config(arguments)
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"--config: no such file: {error.filename}.") from error
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(str(error)) from error
    problems = args.all_problems() + _run_problems(run, model)
    raise_together(problems)
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
    return Configuration(run, args, model, frozenset(given))


def _run_problems(run: RunSettings, model: ModelConfig) -> list[str]:
    found = []
    if not run.shards:
        found.append("--shards: expected one or more directories made by `annotate run`, found none.")
    if not 0.0 <= run.eval_fraction < 1.0:
        found.append(f"--eval_fraction: expected a share in [0, 1), found {run.eval_fraction}.")
    if run.model and model.model_name_or_path and run.model != model.model_name_or_path:
        found.append(f"--model {run.model} and --model_name_or_path {model.model_name_or_path} differ: give one.")
    if run.model == "tiny" and model.use_peft:
        found.append("--use_peft: the tiny model has random weights, so an adapter on it learns nothing; remove it.")
    return found


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


def _given(arguments: list[str]) -> list[str]:
    names = [word[2:].partition("=")[0].replace("-", "_") for word in arguments if word.startswith("--")]
    names = [name.removeprefix("no_") for name in names]
    if "--config" in arguments[:-1]:
        import yaml

        path = arguments[arguments.index("--config") + 1]
        try:
            with open(path, encoding="utf-8") as file:
                loaded: Any = yaml.safe_load(file)
        except FileNotFoundError:
            raise UserError(f"--config: no such file: {path}.") from None
        except yaml.YAMLError as error:
            raise UserError(f"--config {path}: expected YAML ({error}).") from error
        names += list(loaded) if isinstance(loaded, dict) else []
    return names


def world_size() -> int:
    """Return the number of processes that the launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def command_line() -> list[str]:
    """Return the command as typed, for `run.json`."""
    return sys.argv
