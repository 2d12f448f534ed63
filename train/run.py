"""`train run`, from shards to a checkpoint with its report.

What enters: a parsed configuration. What leaves: in the output directory, a checkpoint with its tokenizer, `run.json`,
`metrics.jsonl` and `loss_curves.png`; on the terminal, the preflight report, one line a step, and the next command.
"""

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

from datasets import disable_progress_bars
from transformers import PrinterCallback, ProgressCallback
from transformers.utils import logging
from trl import get_peft_config, pack_dataset

from common.errors import UserError
from train.config import Configuration, command_line, world_size
from train.console import ConsoleCallback, MetricsCallback
from train.data import TrainingData, load_data, open_shards, plan_groups
from train.models import CHECKPOINTING_FROM, load_model, load_tokenizer
from train.preflight import preflight_lines
from train.report import CURVES_NAME, RUN_NAME, device_name, draw_curves, final_metrics, write_run
from train.trainer import GOTrainer

CACHE_NAME = ".data"  # the Arrow files of the run, gone when it has finished


def run(configuration: Configuration) -> Path:
    """Train, and return the output directory.

    Raises:
        UserError: shards, model and settings do not fit together.
    """
    settings, args, model_args, given = configuration
    logging.disable_progress_bar()
    disable_progress_bars()
    shards = open_shards(settings.shards or [])
    plan = plan_groups(shards, settings.grouper, args)
    tokenizer = load_tokenizer(settings.model, shards[0], args, model_args)
    output = _output_dir(configuration, plan.column, shards[0].path.name)
    args.output_dir = str(output)
    args.max_length = args.max_length or max(s.manifest.max_length for s in shards)
    with args.main_process_first(desc="data"):
        data = load_data(shards, plan, args.max_length, settings.eval_fraction, args.seed, output / CACHE_NAME)
        data = _packed(data, args)
    model = load_model(settings.model, tokenizer, args, model_args)
    if not given & {"gradient_checkpointing", "activation_checkpointing"}:
        needed = model.num_parameters() >= CHECKPOINTING_FROM
        args.gradient_checkpointing = args.activation_checkpointing = needed
    recorded = _settings(configuration)
    trainer = GOTrainer(
        model=model,
        args=args,
        train_dataset=data.train,
        eval_dataset=data.eval,
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
        callbacks=[MetricsCallback()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(ConsoleCallback())
    main = trainer.is_world_process_zero()
    if main:
        print("\n".join(preflight_lines(data.report, plan, args, trainer.accelerator.num_processes)), flush=True)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model(str(output))
    trainer.save_state()
    if main:
        history = trainer.state.log_history
        content = {
            "command": command_line(),
            **recorded,
            "data": {"column": plan.column, "dynamic_groups": plan.dynamic, **dataclasses.asdict(data.report)},
            "steps": trainer.state.global_step,
            "redone": dataclasses.asdict(trainer.guesses),
            "final_metrics": final_metrics(history),
        }
        title = f"{args.objective}, {plan.column or 'no groups'}" + (f", eta {plan.eta:g}" if plan.column else "")
        drawn = draw_curves(output / CURVES_NAME, history, title)
        write_run(output / RUN_NAME, content, shards, device_name())
        shutil.rmtree(output / CACHE_NAME, ignore_errors=True)
        print("\n".join(_summary(output, final_metrics(history), drawn, configuration)), flush=True)
    return output


def _output_dir(configuration: Configuration, column: str | None, shards_name: str) -> Path:
    """Return where the run goes: what the user said, or the first free name under runs/."""
    args = configuration.args
    if "output_dir" in configuration.given:
        output = Path(args.output_dir)
        if (output / RUN_NAME).exists() and not args.resume_from_checkpoint:
            raise UserError(
                f"--output_dir {output}: holds a finished run already ({RUN_NAME}). Choose another directory, remove "
                "this one, or continue it with --resume_from_checkpoint."
            )
        return output
    if world_size() > 1:
        raise UserError("--output_dir: several processes need to agree on it, so it has no default here; give one.")
    name = "-".join(["sft" if args.objective == "sft" else f"{args.objective}-{column}", shards_name])
    number = 1
    while (output := Path("runs") / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return output


def _packed(data: TrainingData, args: Any) -> TrainingData:
    """Lay documents end to end in rows of `max_length` where --packing asks for it; every column goes with them."""
    parts = {"train": data.train, "eval": data.eval}
    for part, packing in (
        ("train", args.packing),
        ("eval", args.packing if args.eval_packing is None else args.eval_packing),
    ):
        if parts[part] is None:
            continue
        if args.shuffle_dataset:
            parts[part] = parts[part].shuffle(seed=args.seed)
        if packing:
            parts[part] = pack_dataset(parts[part], args.max_length, args.packing_strategy)
    return data._replace(**parts)


def _settings(configuration: Configuration) -> dict[str, Any]:
    """Return every setting of the run, without secrets."""
    args = configuration.args.to_dict()  # hides tokens
    own = ("objective", "eta", "ties", "worst_over", "select_over", "lambda_max", "lambda_min")
    resolved = {name: getattr(configuration.args, f"resolved_{name}", args[name]) for name in own}
    return {
        "run": dataclasses.asdict(configuration.run),
        "objective": resolved,
        "training": args,
        "model": dataclasses.asdict(configuration.model),
    }


def _summary(output: Path, metrics: dict[str, float], drawn: bool, configuration: Configuration) -> list[str]:
    names = ("loss_all", "loss_important", "loss_unimportant", "eval_loss_all")
    losses = ", ".join(f"{name} {metrics[name]:.4f}" for name in names if name in metrics)
    runtime_s = metrics.get("train_runtime", math.nan)
    files = [RUN_NAME, "metrics.jsonl", *([CURVES_NAME] if drawn else [])]
    lines = [
        "",
        f"finished in {runtime_s:.1f} s: {losses}",
        f"  checkpoint  {output}  (loads with AutoModelForCausalLM.from_pretrained)",
        f"  beside it   {', '.join(files)}",
    ]
    shards = " ".join(configuration.run.shards or [])
    other = "sft" if configuration.args.objective != "sft" else "go"
    command = f"train run --shards {shards} --model {configuration.run.model} --objective {other}"
    return [*lines, f"next: compare it with `{command}`"]
