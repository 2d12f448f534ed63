"""Settings that would bypass the objective, contradict the shards, or do nothing: each is refused with a sentence.

What enters: a `GOConfig` and an objective, and from the command line also the other settings and the names that were
set. What leaves: sentences that name the flag, say why, and what to do. A setting of TRL's that is not named here works
as in TRL.
"""

import dataclasses
from collections.abc import Collection
from typing import Any

from trl import ModelConfig

from train.settings.flags import RunSettings

# Shards hold tokens already: text, template, end-of-turn and which tokens are supervised were settled with them.
SETTLED_BY_SHARDS = (
    "dataset_text_field",
    "eos_token",
    "pad_token",
    "chat_template_path",
    "completion_only_loss",
    "assistant_only_loss",
    "label_names",
    "length_column_name",
)
# Settings that nothing here would read, and why.
WITHOUT_EFFECT = {
    "dataset_num_proc": "shards are read in one pass, and nothing is left to map",
    "use_cache": "training needs no cache of keys and values, and TRL switches it off",
    "include_for_metrics": "no metric is computed from predictions",
    "batch_eval_metrics": "no metric is computed from predictions",
    "eval_accumulation_steps": "no predictions are kept in evaluation",
    "do_predict": "there is no test set",
    "restore_callback_states_from_checkpoint": "a resumed run always goes on with all its counters",
}
NEEDS_HELD_OUT = (
    "do_eval",
    "eval_strategy",
    "eval_steps",
    "eval_delay",
    "eval_on_start",
    "eval_packing",
    "per_device_eval_batch_size",
    "load_best_model_at_end",
    "metric_for_best_model",
    "greater_is_better",
)
NEEDS_HELD_OUT_HERE = (
    "eval_seed",
    "eval_groupers",
    "eval_eta",
    "token_losses",
)  # the same, of ours
OF_LORA = tuple(
    field.name
    for field in dataclasses.fields(ModelConfig)
    if field.name.startswith(("lora_", "use_rslora", "use_dora"))
)
OF_4BIT = ("bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage")
OF_LOADED_MODELS = ("dtype", "attn_implementation", "model_revision", "load_in_8bit", "load_in_4bit")


def training_problems(args: Any, objective: Any) -> list[str]:
    """Return what is wrong with a `GOConfig`, for an `Objective`: its own settings too."""
    found = _grouping(args, objective) + objective.settings.problems()
    found += _against_the_shards(args) + _without_effect(args) + _against_resuming(args) + _against_the_counts(args)
    found += _against_no_training(args)
    if not objective.is_base_trainers:
        found += _bypassing(args, objective.name)
    elif args.loss_type == "dft":  # TRL's evaluation would be by its trainer's loss, ours by the objective's
        found.append(
            f"--loss_type {args.loss_type}: evaluation would report the plain mean; use --objective {args.loss_type}, "
            "the same loss."
        )
    return found


def _grouping(args: Any, objective: Any) -> list[str]:
    found = args.problems()
    if objective.settings.problems():
        return found  # what it needs may not be known
    if args.ties == "threshold" and objective.needs.is_dynamic:
        found.append("--ties threshold: groups from the excess loss always use the rank rule; remove the flag.")
    if args.ties == "rank" and (objective.needs.softness is not None or objective.needs.over == "dataset"):
        found.append(f"--ties rank: objective {objective.name} makes its groups without a rank rule; remove the flag.")
    return found


def flag_problems(run: RunSettings, args: Any, model: ModelConfig, objective: Any, given: Collection[str]) -> list[str]:
    """Return what is wrong with flags beside each other; `given` are the names that were set."""
    found = run.problems()
    if not run.eval_fraction:
        found += [
            f"--{name}: nothing is held out for evaluation; add --eval_fraction, or remove the flag."
            for holder, names in ((args, NEEDS_HELD_OUT), (run, NEEDS_HELD_OUT_HERE))
            for name in names
            if name in given and _is_set(holder, name) and (holder is run or not _is_no(getattr(holder, name)))
        ]
    if run.permute_groups and objective.needs.kind is None:
        found.append(
            f"--permute_groups: objective {objective.name} reads no groups, so it is its own control; remove the flag."
        )
    if run.model and model.model_name_or_path and run.model != model.model_name_or_path:
        found.append(f"--model {run.model} and --model_name_or_path {model.model_name_or_path} differ: give one.")
    if run.model == "tiny" or not (run.model or model.model_name_or_path):
        found += _with_the_tiny_model(args, model)
    if not model.use_peft:
        found += [f"--{name}: only with --use_peft true." for name in OF_LORA if _is_set(model, name)]
        found += [
            f"--{name}: quantized weights cannot be trained, only an adapter on them; add --use_peft true."
            for name in ("load_in_8bit", "load_in_4bit")
            if _is_set(model, name)
        ]
    elif model.lora_task_type != "CAUSAL_LM":
        found.append(f"--lora_task_type {model.lora_task_type}: only CAUSAL_LM is trained here; remove the flag.")
    elif _names_the_head(model.lora_target_modules) or _names_the_head(model.lora_target_parameters):
        found.append(
            "--lora_target_modules lm_head: the loss comes from the LM head's own weight (TRL's fused head), so an "
            "adapter on it would never be trained; remove lm_head."
        )
    if not model.load_in_4bit:
        found += [f"--{name}: only with --load_in_4bit true." for name in OF_4BIT if _is_set(model, name)]
    return found


def parallelism_problems(parallelism: Any) -> list[str]:
    """Return which kinds of parallelism split what the objective takes as a whole (an accelerate configuration)."""
    if parallelism is None:
        return []
    kinds = {"cp_size": "context", "sp_size": "sequence", "tp_size": "tensor"}
    return [
        f"parallelism_config: {kind} parallelism ({name} {getattr(parallelism, name)}) splits sequences or repeats "
        "batches over ranks, where group means count each token of a step once; use data parallelism (DDP or FSDP2)."
        for name, kind in kinds.items()
        if (getattr(parallelism, name, None) or 1) > 1
    ]


def _bypassing(args: Any, name: str) -> list[str]:
    bypass = f"would bypass objective {name}"
    found = parallelism_problems(args.parallelism_config)
    if args.label_smoothing_factor:
        found.append(f"--label_smoothing_factor: {bypass}; remove it, or use an objective that is TRL's own loss.")
    if args.loss_type != "nll":
        found.append(f"--loss_type {args.loss_type}: {bypass}; use nll.")
    if not args.average_tokens_across_devices:
        found.append(
            f"--average_tokens_across_devices false: {bypass}, which counts the tokens of all ranks; remove it."
        )
    if str(getattr(args.optim, "value", args.optim)) in ("lomo", "adalomo"):
        found.append(
            f"--optim {getattr(args.optim, 'value', args.optim)}: updates during the backward pass, which {bypass}; "
            "choose another."
        )
    return found


def _against_the_shards(args: Any) -> list[str]:
    found = [
        f"--{name}: the shards fix text, template and supervised tokens; remove the flag, or annotate again with "
        "`annotate run`."
        for name in SETTLED_BY_SHARDS
        if _is_set(args, name)
    ]
    if args.dataset_kwargs not in (None, {"skip_prepare_dataset": True}):
        found.append("--dataset_kwargs: the shards are prepared already; remove the flag.")
    if args.truncation_mode != "keep_start":
        found.append(
            f"--truncation_mode {args.truncation_mode}: documents keep their start, here as in `annotate run`; remove "
            "the flag."
        )
    if args.max_length is not None and args.max_length < 2:
        found.append(f"--max_length: expected at least 2 tokens, one of them predicted; found {args.max_length}.")
    if args.packing and args.packing_strategy == "wrapped":
        found.append("--packing_strategy wrapped: cuts documents apart, so groups would mix; use bfd.")
    return found


def _without_effect(args: Any) -> list[str]:
    found = [
        f"--{name}: has no effect here ({why}); remove the flag."
        for name, why in WITHOUT_EFFECT.items()
        if _is_set(args, name) and not _is_no(getattr(args, name))
    ]
    kernels = args.liger_kernel_config or {}
    for name in ("fused_linear_cross_entropy", "cross_entropy"):
        if kernels.get(name):
            found.append(
                f"--liger_kernel_config: {name} computes its own loss, where the loss comes from TRL's fused LM head; "
                "set it to false."
            )
    if kernels and not args.use_liger_kernel:
        found.append("--liger_kernel_config: only with --use_liger_kernel true.")
    return found


def _against_resuming(args: Any) -> list[str]:
    found = []
    if args.ignore_data_skip:
        found.append(
            "--ignore_data_skip: a resumed run would see the epoch's first documents again; remove the flag: skipping "
            "them costs next to nothing."
        )
    if args.auto_find_batch_size:
        found.append(
            "--auto_find_batch_size: would change how many documents a step has; give --per_device_train_batch_size "
            "and --global_batch_size, which keeps the step."
        )
    return found


def _against_the_counts(args: Any) -> list[str]:
    accelerate = args.accelerator_config
    found = [
        f"--accelerator_config: {name} cuts batches up after their tokens were counted; remove it."
        for name in ("split_batches", "dispatch_batches")
        if getattr(accelerate, name, None)
    ]
    if getattr(accelerate, "use_seedable_sampler", True) is False:
        found.append("--accelerator_config: use_seedable_sampler false gives an order that no resumed run finds again.")
    return found


def _against_no_training(args: Any) -> list[str]:
    if args.max_steps == 0:
        return ["--max_steps 0: nothing would be trained; give at least 1, or remove the flag for --num_train_epochs."]
    if args.max_steps < 0 and args.num_train_epochs <= 0:
        return [f"--num_train_epochs {args.num_train_epochs:g}: nothing would be trained; give more than 0."]
    return []


def _with_the_tiny_model(args: Any, model: ModelConfig) -> list[str]:
    found = [
        f"--{name}: the tiny model is made here, in float32 and with random weights; remove the flag, or give --model."
        for name in OF_LOADED_MODELS
        if _is_set(model, name)
    ]
    if args.model_init_kwargs:
        found.append("--model_init_kwargs: the tiny model is made here; remove the flag, or give --model.")
    if model.use_peft:
        found.append("--use_peft: the tiny model has random weights, so an adapter on it learns nothing; remove it.")
    return found


def _names_the_head(targets: str | list[str] | None) -> bool:
    return any("lm_head" in target for target in ([targets] if isinstance(targets, str) else targets or []))


def _default(settings: Any, name: str) -> Any:
    field = type(settings).__dataclass_fields__[name]
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _is_set(settings: Any, name: str) -> bool:
    return getattr(settings, name) != _default(settings, name)


def _is_no(value: Any) -> bool:
    return value in (None, False, "no", [])
