"""Each token's loss in the first held-out documents, before the first step and after the last: `--token_losses N`.

What enters: the held-out documents and the trainer. What leaves: `token_losses.parquet` in the run's directory, written
before the first step and completed at the end, so that a run that was killed goes on with what it has kept.

The pass before the first step runs where training begins, with the model as it is laid out over the ranks. It leaves no
log line, and the random generators as they were: a run with it makes the steps of a run without.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset
from transformers import TrainerCallback

from common.errors import UserError
from train.data.held_out import HeldOut
from train.data.token_losses import LOSSES_NAME, before_losses, losses_table, write_losses
from train.loop.replay import random_state, replayed


class KeptLosses(TrainerCallback):
    """What the tokens of the first `num` held-out documents cost, before and after."""

    def __init__(self, held_out: HeldOut, rows: Dataset, num: int, output: Path, is_resumed: bool):
        """Prepare, and read what a run that is gone on with has kept.

        Args:
            held_out: the held-out documents.
            rows: the same as the trainer takes them, numbered and not packed.
            num: how many documents to keep; all, where there are fewer.
            output: the run's directory.
            is_resumed: whether the run goes on from a checkpoint.

        Raises:
            UserError: the run that is gone on with has kept none, or those of other documents; or `num` is 0 documents.
        """
        if len(rows) == 0:
            raise UserError("--token_losses: no document with a token to predict is held out; raise --eval_fraction.")
        self.held_out, self.num, self.path = held_out, num, output / LOSSES_NAME
        self.rows = rows.select(range(min(num, len(rows))))
        self.before: pa.Table | None = before_losses(self.path, held_out, num) if is_resumed else None
        self.trainer: Any = None

    def attach(self, trainer: Any) -> None:
        """Follow a trainer; called on every rank before it trains."""
        self.trainer = trainer
        trainer.add_callback(self)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the losses before the first step; those of a resumed run are kept already."""
        if self.before is None:
            self.before = losses_table(self.held_out, self.num, state.global_step, self._pass())
            if state.is_world_process_zero:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_losses(self.path, self.before)

    def finish(self, losses: np.ndarray) -> None:
        """Complete the file, on one rank.

        Args:
            losses: float [num_tokens], nats, of all held-out tokens under the model that is kept.
        """
        assert self.before is not None, "the trainer has trained"
        state = self.trainer.state
        is_best = self.trainer.args.load_best_model_at_end and state.best_global_step
        step = state.best_global_step if is_best else state.global_step
        write_losses(self.path, self.before, losses_table(self.held_out, self.num, step, losses))

    def _pass(self) -> np.ndarray:
        """Return the losses by the tokens' numbers, float [num_tokens]; those of other documents are 0."""
        trainer = self.trainer
        args, recorded = trainer.args, trainer.held_out
        drop_last, args.dataloader_drop_last = args.dataloader_drop_last, False  # every document counts
        recorded.clear()
        states = random_state(args.device)
        try:
            with replayed(states, args.device):
                loader = trainer.get_eval_dataloader(self.rows)
                trainer.evaluation_loop(loader, "token losses", prediction_loss_only=True)
            losses, _ = recorded.gather(len(self.held_out.predicted()), trainer.accelerator)
        finally:
            args.dataloader_drop_last = drop_last
            trainer.forget_evaluation()
            recorded.clear()
        return losses
