"""Each held-out token's loss under the model as it is: kept as the evaluation goes, gathered at its end.

What enters: the losses of evaluation batches and their tokens' numbers, as `data/held_out.py` gave them. What leaves:
one loss a token, over all ranks. Next: `HeldOut.write` sums them by document and group.

The last evaluation's own pass is used where it was of the model that is kept and took in every document. Otherwise (a
run that ended between two evaluations, was continued after the last one, or kept an earlier checkpoint) there is one
pass more. Its log line is left out where the log has one of that step already.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from train.data.held_out import HeldOut


class HeldOutLosses:
    """The losses of the latest evaluation, on one rank."""

    def __init__(self) -> None:
        """Begin with none."""
        self.step: int | None = None  # after which the model was evaluated
        self._parts: list[tuple[Tensor, Tensor]] = []

    def add(self, step: int, numbers: Tensor, losses: Tensor, supervised: Tensor) -> None:
        """Keep a batch: int64 [R, C] token numbers, float32 [R · (C - 1)] losses and bool supervised, shifted."""
        if step != self.step:
            self.clear()
            self.step = step
        taken = supervised.flatten()
        self._parts.append((numbers[:, 1:].flatten()[taken].cpu(), losses.detach().float().flatten()[taken].cpu()))

    def clear(self) -> None:
        """Forget the evaluation."""
        self.step, self._parts = None, []

    def gather(self, num_tokens: int, accelerator: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return each token's loss over all ranks, float64 [num_tokens], and which tokens some rank has seen, bool."""
        loss, seen = torch.zeros(2, num_tokens)
        for numbers, losses in self._parts:
            loss[numbers], seen[numbers] = losses, 1.0
        both = torch.stack([loss, seen]).to(accelerator.device)
        if accelerator.num_processes > 1:
            both = accelerator.reduce(both, reduction="sum")
        loss, seen = both.cpu().double().numpy()
        return loss / np.maximum(seen, 1), seen > 0


def held_out_losses(trainer: Any, held_out: HeldOut) -> np.ndarray:
    """Return each held-out token's loss under the trainer's model, float64 [num_tokens], nats; called on every rank.

    Read where a token is predicted; NaN where the model's loss is.
    """
    recorded, args, step = trainer.held_out, trainer.args, trainer.state.global_step
    predicted = held_out.predicted()
    if recorded.step == step and not args.load_best_model_at_end:
        losses, seen = recorded.gather(len(predicted), trainer.accelerator)
        if seen[predicted].all():
            return losses
    recorded.clear()
    args.dataloader_drop_last = False  # every document counts
    if any("eval_loss" in entry and entry.get("step") == step for entry in trainer.state.log_history):
        _evaluate_silently(trainer)
    else:
        trainer.evaluate()
    losses, seen = recorded.gather(len(predicted), trainer.accelerator)
    assert seen[predicted].all(), "an evaluation takes in every held-out document"
    return losses


def _evaluate_silently(trainer: Any) -> None:
    """Run an evaluation pass that leaves no log line."""
    trainer.evaluation_loop(trainer.get_eval_dataloader(), "held out", prediction_loss_only=True)
    trainer.forget_evaluation()
