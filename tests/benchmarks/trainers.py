"""What `tests.benchmarks.train` trains with: the product's trainer with a clock, and the loop that Rho-1 usually is."""

import time
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.nn import functional as F
from transformers import TrainerCallback
from trl.trainer.sft_trainer import add_fused_lm_head

from train.data.rows import REFERENCE_LOSS
from train.loop.trainer import GOTrainer


class TimedTrainer(GOTrainer):
    """Also measures what the objective and the curves take of a step."""

    def _forward(self, *arguments):
        started = time.perf_counter()
        result = super()._forward(*arguments)
        self.forward_s = time.perf_counter() - started
        return result

    def compute_loss(self, *arguments, **keywords):
        started = time.perf_counter()
        result = super().compute_loss(*arguments, **keywords)
        self.__dict__.setdefault("own_s", []).append(time.perf_counter() - started - self.forward_s)
        return result


class InsideTrainer(TimedTrainer):
    """Rho-1 with the reference model inside the loop, as it is usually written: a forward pass more in every step.

    Gives that loop every advantage: the pass keeps no activations, computes log-probabilities in chunks, and the
    selection after it is the product's.
    """

    def use_reference(self, model: Any) -> None:
        """Take a frozen model, whose losses replace the shards'."""
        add_fused_lm_head(model, outputs=("log_probs",))
        self.reference = model.to(self.args.device).eval().requires_grad_(False)

    def _forward(self, model, inputs, *arguments):
        started = time.perf_counter()
        with torch.no_grad(), self.compute_loss_context_manager():
            log_probs = self.reference(**inputs, use_cache=False, fused_lm_head=True).log_probs.float()
        self.reference_loss = F.pad(-log_probs.view(inputs["input_ids"].shape[0], -1), (1, 0))
        result = super()._forward(model, inputs, *arguments)
        self.forward_s = time.perf_counter() - started
        return result

    def _observed(self, outputs, inputs, extra):
        return super()._observed(outputs, inputs, {**extra, REFERENCE_LOSS: self.reference_loss})


class Clock(TrainerCallback):
    """Measures every optimizer step, by the clock and by this process's processor time."""

    def __init__(self, device: str):
        self.device = device
        self.wall_s: list[float] = []
        self.processor_s: list[float] = []

    def on_step_begin(self, *arguments, **keywords):
        self.started = self.now()

    def on_step_end(self, *arguments, **keywords):
        wall_s, processor_s = self.now()
        self.wall_s.append(wall_s - self.started[0])
        self.processor_s.append(processor_s - self.started[1])

    def now(self) -> tuple[float, float]:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()


def labelled(rows: Any) -> Any:
    """Return the rows as TRL takes them: labels in place of the supervised tokens, nothing else."""
    columns = {"input_ids": [ids.tolist() for ids in rows["input_ids"]]}
    columns["labels"] = [
        np.where(supervised, ids, -100).tolist()
        for ids, supervised in zip(rows["input_ids"], rows["supervised"], strict=True)
    ]
    if "seq_lengths" in rows.column_names:
        columns["seq_lengths"] = [[int(n) for n in lengths] for lengths in rows["seq_lengths"]]
    return Dataset.from_dict(columns)
