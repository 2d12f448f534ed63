"""The harness at work, in this process: a checkpoint's model, loaded once, and one leaf task after another.

What enters: a checkpoint and an open task. What leaves: its metrics, as the harness computes them, and each item's own
results. Next: `results.py` keeps them beside the run.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from common.errors import UserError
from train.evaluation.checkpoints import Checkpoint
from train.evaluation.tasks import OpenTask

PREFERRED = ("acc_norm", "acc")  # the headline of a task that no suite says one of


@dataclass(frozen=True)
class Options:
    """How tasks are asked, whichever they are; the names are the harness's."""

    limit: float | None = None  # items of each leaf task; below 1 a share of them
    batch_size: str = "1"
    device: str | None = None
    dtype: str = "auto"
    apply_chat_template: bool = False


def load_model(checkpoint: Checkpoint, options: Options) -> Any:
    """Return the harness's own wrapper of a Hugging Face model, as `lm_eval --model hf` makes it.

    Raises:
        UserError: the checkpoint cannot be loaded.
    """
    import torch
    from lm_eval.models.huggingface import HFLM

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    size = options.batch_size
    try:
        return HFLM(
            pretrained=checkpoint.model,
            tokenizer=checkpoint.tokenizer,
            peft=checkpoint.adapter,
            device=device,
            dtype=options.dtype,
            batch_size=int(size) if size.isdecimal() else size,
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        first = str(error).strip().partition("\n")[0]
        raise UserError(f"{checkpoint.name}: could not be loaded ({type(error).__name__}: {first}).") from error


def run_leaf(model: Any, task: OpenTask, leaf: str, options: Options) -> dict[str, Any]:
    """Ask one leaf task and return `metrics` (by name) and `items` (`id`, `group`, and each metric's value).

    A metric of another filter than the first is named `metric,filter`. A value that is a list, such as IFEval's of each
    instruction, stays one, of numbers; what has no number is left out of the items.
    """
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    found = simple_evaluate(
        model=model,
        tasks=[task.leaves[leaf]],
        num_fewshot=task.asked.shots,
        limit=options.limit,
        bootstrap_iters=0,
        log_samples=True,
        apply_chat_template=options.apply_chat_template,
        task_manager=TaskManager(include_defaults=False),
    )
    samples = found["samples"][leaf]
    first = samples[0]["filter"]
    metrics = {
        _name(*key.partition(",")[::2], first): float(value)
        for key, value in found["results"][leaf].items()
        if "_stderr," not in key and isinstance(value, (int, float)) and "," in key
    }
    items: dict[int, dict[str, Any]] = {}
    for sample in samples:
        prefix = f"{leaf}/" if task.is_group else ""
        identity = f"{prefix}{sample['doc_id']}-{sample['prompt_hash'][:8]}"
        item = items.setdefault(sample["doc_id"], {"id": identity, "group": None})
        item |= {
            _name(metric, sample["filter"], first): numbers if isinstance(sample[metric], list) else numbers[0]
            for metric in sample["metrics"]
            if (numbers := list(_numbers(sample[metric])))
        }
    return {"metrics": metrics, "items": [item for _, item in sorted(items.items())]}


def headline(metrics: dict[str, float]) -> str:
    """Return the metric that stands for a task where no suite says one."""
    return next((name for name in PREFERRED if name in metrics), next(iter(metrics)))


def merge(leaves: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a group's `metrics`, each leaf's weighted by its items as MMLU's are, and all `items`."""
    total = sum(len(leaf["items"]) for leaf in leaves)
    names = [name for name in leaves[0]["metrics"] if all(name in leaf["metrics"] for leaf in leaves)]
    metrics = {name: sum(leaf["metrics"][name] * len(leaf["items"]) for leaf in leaves) / total for name in names}
    return {"metrics": metrics, "items": [item for leaf in leaves for item in leaf["items"]]}


def _name(metric: str, used: str, first: str) -> str:
    return metric if used == first else f"{metric},{used}"


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, list):
        for part in value:
            yield from _numbers(part)
    elif hasattr(value, "__float__") and not isinstance(value, str):
        yield float(value)
