"""`eval_documents.parquet` of any checkpoint: the same file that a run with --eval_fraction leaves at its end.

What enters: a checkpoint, shards, and what chooses documents and groups. What leaves: the file, in the folder of the
results, made by the trainer's own evaluation pass: batches, ranks, precision and loss are those of `train run`. Beside
a run it is `held_out/<name>.parquet`, since the run has a file of its own shards already.
"""

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import UserError
from common.thresholds import Ties
from train.data.held_out import METADATA_KEY
from train.evaluation.checkpoints import Checkpoint


@dataclass(frozen=True)
class Questions:
    """Which documents, measured by what."""

    shards: list[str]
    eval_fraction: float
    eval_seed: int
    eval_groupers: list[str] | None
    eta: float
    ties: Ties
    max_length: int | None
    batch_size: int
    use_cpu: bool
    seed: int  # of the tiny model


def write_documents(checkpoint: Checkpoint, questions: Questions, path: Path) -> tuple[dict[str, Any], bool]:
    """Write the file and return its sums (`documents`, `tokens`, `loss` and, by column, tokens and loss; empty on other
    ranks than the first), and whether the file was there already, of this checkpoint and these questions.

    Raises:
        UserError: shards, checkpoint and settings do not fit together.
    """
    from train.data.held_out import evaluation_facts, load_held_out
    from train.data.loading import open_shards
    from train.data.yardsticks import plan_yardsticks
    from train.loop.held_out import held_out_losses

    shards = open_shards(questions.shards)
    yardsticks = plan_yardsticks(shards, questions.eval_groupers, questions.eta, questions.ties)
    length = questions.max_length or max(s.manifest.max_length for s in shards)
    facts = evaluation_facts(checkpoint.name, questions.eval_seed, questions.eval_fraction, shards)
    if checkpoint.model != "tiny":
        facts |= {"checkpoint_hash": checkpoint.content_hash(), "max_length": length}
        if (table := _kept(path, facts | asdict(yardsticks))) is not None:
            return _sums(table), True
    with tempfile.TemporaryDirectory(prefix="sft-go-") as work:
        args, tokenizer, model = _load(checkpoint, shards, questions, length, work)
        chosen = (length, questions.eval_fraction, questions.eval_seed)
        held_out = load_held_out(shards, yardsticks, *chosen, Path(work) / f"rank-{args.process_index}")
        rows = held_out.rows()
        if len(rows) == 0:
            raise UserError(
                f"--eval_fraction {questions.eval_fraction}: chooses no document with a token to predict; raise it."
            )
        trainer = _trainer(args, tokenizer, model, rows)
        losses = held_out_losses(trainer, held_out)
        sums: dict[str, Any] = {}
        if trainer.is_world_process_zero():
            path.parent.mkdir(parents=True, exist_ok=True)
            sums = _sums(held_out.write(path, losses, **facts))
        trainer.accelerator.wait_for_everyone()
    return sums, False


def _kept(path: Path, facts: dict[str, Any]) -> pa.Table | None:
    """Return the file's table, if it says these facts of itself."""
    if not path.is_file():
        return None
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError):
        return None  # what cannot be read is written anew
    said = json.loads((table.schema.metadata or {}).get(METADATA_KEY, b"{}"))
    return table if json.loads(json.dumps(facts)).items() <= said.items() else None


def _sums(table: pa.Table) -> dict[str, Any]:
    names = [name for name in table.column_names if name != "document_id"]
    return {"documents": table.num_rows, **{name: sum(table[name].to_pylist()) for name in names}}


def _load(checkpoint: Checkpoint, shards: Any, questions: Questions, length: int, work: str) -> tuple[Any, Any, Any]:
    from trl import ModelConfig

    from train.loop.models import load_model, load_tokenizer
    from train.objectives import BASELINE_OBJECTIVE
    from train.settings.config import GOConfig

    args = GOConfig(
        output_dir=work,
        objective=BASELINE_OBJECTIVE,
        per_device_eval_batch_size=questions.batch_size,
        max_length=length,
        use_cpu=questions.use_cpu,
        seed=questions.seed,
        disable_tqdm=True,
    )
    model_args = ModelConfig()
    tokenizer = load_tokenizer(checkpoint.tokenizer, shards[0], args, model_args)
    model = load_model(checkpoint.model, tokenizer, args, model_args)
    if checkpoint.adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, checkpoint.adapter)
    return args, tokenizer, model


def _trainer(args: Any, tokenizer: Any, model: Any, rows: Any) -> Any:
    from transformers import PrinterCallback, ProgressCallback

    from train.data.plan import GroupPlan
    from train.loop.trainer import GOTrainer
    from train.objectives import BASELINE_OBJECTIVE, OBJECTIVES

    ungrouped = GroupPlan(None, False, args.eta, args.resolved_ties)
    objective = OBJECTIVES[BASELINE_OBJECTIVE]()
    trainer = GOTrainer(model, args, objective, ungrouped, rows, rows, processing_class=tokenizer)
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    return trainer
