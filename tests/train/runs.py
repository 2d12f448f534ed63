"""Short training runs in this process, for tests that compare trajectories and parameters."""

from dataclasses import fields
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, ProgressCallback

from common.errors import raise_together
from train.data.loading import load_data, open_shards
from train.data.plan import GroupPlan, plan_groups
from train.data.rows import GROUP, REFERENCE_LOSS
from train.loop.models import tiny_model
from train.loop.trainer import GOTrainer
from train.objectives import DEFAULT_OBJECTIVE, OBJECTIVES
from train.settings.config import GOConfig

QUIET = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "report_to": "none",
    "dataloader_pin_memory": False,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    # With the usual 1e-8, AdamW turns the rounding of gradients near zero (another order of summation) into full steps.
    "adam_epsilon": 1e-6,
}


def make_config(output: Path, **changes) -> GOConfig:
    """Return a configuration for CPU runs of a few steps."""
    return GOConfig(output_dir=str(output), **{**QUIET, **changes})


def make_objective(name: str = DEFAULT_OBJECTIVE, changes: dict | None = None):
    """Return an objective, and take its own settings out of `changes`."""
    kind, changes = OBJECTIVES[name], {} if changes is None else changes
    own = {field.name for field in fields(kind.Settings)} & set(changes)
    return kind(kind.Settings(**{flag: changes.pop(flag) for flag in own}))


def plan_for(opened, grouper, objective=DEFAULT_OBJECTIVE, eta=0.7, ties="threshold", **own):
    """Return the plan of an objective, with its own settings."""
    return plan_groups(opened, grouper, make_objective(objective, own).needs, eta, ties, objective)


def plan_of(rows, args):
    """Return the plan that rows were made by, as far as their columns tell."""
    column = "first" if {GROUP, REFERENCE_LOSS} & set(rows.column_names) else None
    return GroupPlan(column, REFERENCE_LOSS in rows.column_names, args.eta, args.resolved_ties)


def trainer_over(rows, model, args, tokenizer, eval_rows=None, objective=None, **keywords):
    """Return a trainer over rows of one's own; groups are what their columns say."""
    objective = objective or make_objective(args.objective or DEFAULT_OBJECTIVE)
    return GOTrainer(
        model, args, objective, plan_of(rows, args), rows, eval_rows, processing_class=tokenizer, **keywords
    )


def make_trainer(
    shards: Path | str, tokenizer, output: Path, model=None, eval_fraction=0.0, grouper=None, eval_seed=0, **changes
):
    """Return a trainer over a shard directory."""
    objective = make_objective(changes.pop("objective", DEFAULT_OBJECTIVE), changes)
    args = make_config(output, objective=objective.name, **changes)
    raise_together(args.problems_with(objective))
    opened = open_shards([str(shards)])
    plan = plan_groups(opened, grouper, objective.needs, args.eta, args.resolved_ties, objective.name)
    length = args.max_length or opened[0].manifest.max_length
    with args.main_process_first(desc="data"):
        data = load_data(opened, plan, length, eval_fraction, eval_seed, output / ".data")
    if model is None:
        model = make_model(tokenizer)
    trainer = GOTrainer(model, args, objective, plan, data.train, data.eval, processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer


def make_model(tokenizer, seed: int = 0, **config):
    """Return the tiny model with weights from a seed."""
    torch.manual_seed(seed)
    model = tiny_model(tokenizer, 256)
    for name, value in config.items():
        setattr(model.config, name, value)
    return model


def small_model(tokenizer, tied: bool = True, seed: int = 0) -> LlamaForCausalLM:
    """Return a 2-layer Llama of hidden size 32 with weights from a seed."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def parameters(trainer) -> torch.Tensor:
    """Return all parameters in one vector."""
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def history(trainer, name: str) -> list[float]:
    """Return a metric at every step where it was logged."""
    return [entry[name] for entry in trainer.state.log_history if name in entry]
