"""`train run`, from shards to a checkpoint with its report.

What enters: a parsed configuration. What leaves: in the output directory, a checkpoint with its tokenizer, `run.json`,
`metrics.jsonl` and `loss_curves.png`; on the terminal, the preflight report, one line a step, and the next command.
"""

import dataclasses
import math
import os
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import disable_progress_bars
from transformers import PrinterCallback, ProgressCallback
from transformers.utils import logging
from trl import get_peft_config, pack_dataset

from common.errors import UserError, raise_together
from common.shards import ShardDirectory
from train.data.held_out import DOCUMENTS_NAME, evaluation_facts, load_held_out
from train.data.loading import TrainingData, load_data, open_shards, read_documents
from train.data.plan import plan_groups
from train.data.yardsticks import plan_yardsticks
from train.loop.attention import use_lengths
from train.loop.devices import one_device
from train.loop.directory import beginning_lines, choose_directory
from train.loop.fitting import fit, row_lengths
from train.loop.held_out import held_out_losses
from train.loop.kept_losses import KeptLosses
from train.loop.memory import keep_freed_memory
from train.loop.models import CHECKPOINTING_FROM, load_config, load_model, load_tokenizer
from train.loop.trainer import GOTrainer
from train.objectives import DEFAULT_OBJECTIVE, OBJECTIVES
from train.reports.console import ConsoleCallback, MetricsCallback
from train.reports.files import CURVES_NAME, RUN_NAME, device_name, draw_curves, final_metrics, write_run
from train.reports.memory import parts
from train.reports.preflight import preflight_lines
from train.reports.rounding import rounding_lines
from train.reports.speed import speed_of, speed_text
from train.reports.summary import summary_lines
from train.settings.config import Configuration, Registry, build_parser, command_line, parse

CACHE_NAME = ".data"  # the Arrow files of the run, gone when it has finished


def registry() -> Registry:
    """Return the objectives that there are now."""
    return Registry(OBJECTIVES, DEFAULT_OBJECTIVE)


def configure(words: Sequence[str]) -> Configuration:
    """Parse the command line of `train run`, with every registered objective's flags.

    Raises:
        UserError: with every problem found.
    """
    return parse(words, registry())


def print_all_flags() -> None:
    """Print every flag with its text: ours, the objectives', TRL's."""
    build_parser(registry()).print_help()


def prepare_process() -> None:
    """Set what a process that trains needs before anything is loaded."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the data loader's workers fork after the tokenizer
    # TRL 1.16 sets this flag by default, under the name that transformers deprecates.
    warnings.filterwarnings("ignore", message="`gradient_checkpointing` is deprecated")


def run(configuration: Configuration) -> Path:
    """Train, and return the output directory.

    Raises:
        UserError: shards, model and settings do not fit together.
    """
    settings, args, model_args = configuration.run, configuration.args, configuration.model
    objective, given = configuration.objective, configuration.given
    logging.disable_progress_bar()
    disable_progress_bars()
    shards = open_shards(settings.shards or [])
    plan = plan_groups(shards, settings.grouper, objective.needs, args.eta, args.resolved_ties, objective.name)
    documents = read_documents(settings.documents) if settings.documents else None
    if settings.permute_groups:
        plan = dataclasses.replace(plan, permute_seed=args.seed)
    eval_eta = args.eta if settings.eval_eta is None else settings.eval_eta
    yardsticks = plan_yardsticks(shards, settings.eval_groupers, eval_eta, args.resolved_ties)
    tokenizer = load_tokenizer(settings.model, shards[0], args, model_args)
    device = one_device(args)
    output, checkpoint = choose_directory(configuration, plan.column, shards[0].path.name)
    args.output_dir = str(output)
    is_there = output.exists()
    _check_length(args, shards)
    args.max_length = args.max_length or max(s.manifest.max_length for s in shards)
    with args.main_process_first(desc="data"):
        of_evaluation = (settings.eval_fraction, settings.eval_seed)
        data = load_data(shards, plan, args.max_length, *of_evaluation, output / CACHE_NAME, documents)
        held_out = kept = None
        if data.eval is not None:
            chosen = (args.max_length, *of_evaluation, output / CACHE_NAME)
            held_out = load_held_out(shards, yardsticks, *chosen)
            data = data._replace(eval=held_out.numbered(data.eval))
            if settings.token_losses and not settings.dry_run:
                kept = KeptLosses(held_out, data.eval, settings.token_losses, output, checkpoint is not None)
        lengths = row_lengths(data.train)  # of documents
        data = _packed(data, args)
    a_round = args.per_device_train_batch_size * args.world_size
    if args.dataloader_drop_last and len(data.train) < a_round:
        raise UserError(
            f"--dataloader_drop_last: {len(data.train):,} rows do not fill a batch of {a_round:,}, so nothing would be "
            "trained; remove the flag, or lower --per_device_train_batch_size."
        )
    peft_config = get_peft_config(model_args)
    config = load_config(settings.model, tokenizer, args, model_args)
    can_split = settings.global_batch_size is not None
    fitting = fit(args, given, model_args, config, data.train, peft_config, can_split)
    if settings.dry_run:
        notes = [*fitting.lines, _steps(args, data)]
        lines = preflight_lines(data.report, plan, args, objective, args.world_size, notes)
        shutil.rmtree(output / CACHE_NAME if is_there else output, ignore_errors=True)
        print("\n".join([*lines, "nothing was trained (--dry_run)", "next: the same command without --dry_run"]))
        return output
    if args.device.type == "cpu":
        keep_freed_memory()
    model = load_model(settings.model, tokenizer, args, model_args)
    if not given & {"gradient_checkpointing", "activation_checkpointing"}:
        memory = fitting.memory
        needed = memory.checkpointing if memory else model.num_parameters() >= CHECKPOINTING_FROM
        args.gradient_checkpointing = args.activation_checkpointing = needed
    recorded = _settings(configuration)
    try:
        trainer = GOTrainer(
            model=model,
            args=args,
            objective=objective,
            plan=plan,
            train_dataset=data.train,
            eval_dataset=data.eval,
            processing_class=tokenizer,
            peft_config=peft_config,
            callbacks=[MetricsCallback()],
        )
    except UserError:
        raise
    except (ValueError, ImportError) as error:  # what TRL, peft and transformers say about settings
        raise UserError(str(error)) from error
    notes = fitting.lines + rounding_lines(trainer.model, args.learning_rate)
    if fitting.layout.lengths and not use_lengths(trainer.model, bool(args.fsdp), trainer.accelerator.autocast):
        notes.append(("attention", f"{trainer.model.config.get_text_config()._attn_implementation}, with a mask a row"))
    trainer.speed = speed_of(trainer, lengths)
    trainer.origin = _origin(configuration, plan, shards, data)
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(ConsoleCallback())
    if kept is not None:
        kept.attach(trainer)
    main = trainer.is_world_process_zero()
    if main:
        for note in (note for directory in shards for note in directory.notes):
            print(note, flush=True)
        ranks = trainer.accelerator.num_processes
        print("\n".join(preflight_lines(data.report, plan, args, objective, ranks, notes)), flush=True)
        lines = [f"  device {device}"] if device else []
        print("\n".join([*lines, *beginning_lines(configuration, checkpoint)]), flush=True)
    trained = trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    if not trainer.state.global_step:
        raise UserError(f"no optimizer step was made, so {output} holds no finished run; give more steps or epochs.")
    trainer.save_model(str(output))
    losses = held_out_losses(trainer, held_out) if held_out else None
    trainer.save_state()
    if main:
        history = trainer.state.log_history
        content = {
            "command": command_line(),
            **recorded,
            "data": {"column": plan.column, "dynamic_groups": plan.dynamic, **dataclasses.asdict(data.report)},
            "yardsticks": dataclasses.asdict(yardsticks) if held_out else None,
            "eval_hash": held_out.eval_hash() if held_out else None,
            "point": settings.point,
            "seed": args.seed,
            "num_processes": ranks,
            "steps": trainer.state.global_step,
            "layout": fitting.layout._asdict(),
            "memory_estimate": parts(fitting.memory) if fitting.memory else None,
            "redone": trainer.redone.state_dict(),
            "worst_group_switches": trainer.curves.summary(),
            "train_runtime_s": round(trainer.speed.earlier_s + trained.metrics["train_runtime"], 3),
            **trainer.speed.whole(),
            "final_metrics": final_metrics(history),
        }
        title = f"{objective.name}, {plan.column or 'no groups'}" + (f", eta {plan.eta:g}" if plan.column else "")
        if held_out:
            facts = evaluation_facts(settings.model, settings.eval_seed, settings.eval_fraction, shards)
            held_out.write(output / DOCUMENTS_NAME, losses, **facts)
        if kept is not None:
            kept.finish(losses)
        drawn = draw_curves(output / CURVES_NAME, history, title)
        write_run(output / RUN_NAME, content, shards, device_name())
        shutil.rmtree(output / CACHE_NAME, ignore_errors=True)
        summary = summary_lines(output, final_metrics(history), drawn, configuration)
        print("\n".join([*summary[:2], f"  speed       {speed_text(content)}", *summary[2:]]), flush=True)
    return output


def _steps(args: Any, data: TrainingData) -> tuple[str, str]:
    """Return how many optimizer steps there would be, as a line of the preflight report."""
    a_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    an_epoch = max(1, math.ceil(len(data.train) / a_step))
    steps = args.max_steps if args.max_steps > 0 else math.ceil(an_epoch * args.num_train_epochs)
    return "steps", f"{steps:,}, {an_epoch:,} an epoch"


def _check_length(args: Any, shards: list[ShardDirectory]) -> None:
    """Refuse a length that documents were meant to have and that the annotation has cut them below."""
    raise_together(
        [
            f"--max_length {args.max_length}: {directory.path} was cut at {directory.manifest.max_length} tokens by "
            f"`annotate run` ({directory.manifest.counts.truncated:,} documents). Annotate again with --max-length "
            f"{args.max_length}, or give --max_length {directory.manifest.max_length}."
            for directory in shards
            if args.max_length and not args.packing and args.max_length > directory.manifest.max_length
            if directory.manifest.counts.truncated
        ]
    )


def _origin(
    configuration: Configuration, plan: Any, shards: list[ShardDirectory], data: TrainingData
) -> dict[str, Any]:
    """Return what a run is made from beside its training arguments: a resumed run must have the same."""
    settings, model = configuration.run, dataclasses.asdict(configuration.model)
    return {
        "model": settings.model,
        **{name: value for name, value in model.items() if name != "model_name_or_path"},
        "shards": [directory.digest for directory in shards],
        "column": plan.column,
        "eval_fraction": settings.eval_fraction,
        "eval_seed": settings.eval_seed,
        "permute_groups": settings.permute_groups,
        "rows": len(data.train),
    }


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
    shared = {"objective": args["objective"], "eta": args["eta"], "ties": configuration.args.resolved_ties}
    resolved = {**shared, **configuration.objective.settings.resolved()}
    return {
        "run": dataclasses.asdict(configuration.run),
        "objective": resolved,
        "training": args,
        "model": dataclasses.asdict(configuration.model),
    }
