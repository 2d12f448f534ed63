"""Going on after a kill: the same documents in the same order, the same losses and the same counters.

What enters: a trainer that is writing, or continuing from, a checkpoint. What leaves: `resume.json` in each checkpoint,
and each rank's `run_state_<rank>.pt`, beside what transformers saves (weights, optimizer, schedule, random states,
log lines): everything else that the next step or the next log line depends on, and the settings and data that the run
was started with. A resume with others is refused with what changed.

A checkpoint is complete when both `resume.json` and `trainer_state.json` can be read: transformers writes the latter
last, after every rank has written its part. It is whole when its files are also what was written (`checksums.py`). What
a kill left half-written, and what was damaged since, is passed over.
"""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import SFTTrainer

from common.errors import UserError
from common.files import write_json
from train.loop.checksums import CHECKSUMS_NAME, add_checksum, find_damage, write_checksums
from train.loop.state import RunState
from train.objectives.base import Objective

RESUME_NAME = "resume.json"

# Settings that a resumed run may have otherwise: no parameter and no loss depends on them.
FREE_PREFIXES = ("logging_", "log_", "save_", "hub_", "push_to_hub", "trackio_", "ddp_", "dataloader_")
FREE = {
    *(
        "output_dir",
        "resume_from_checkpoint",
        "report_to",
        "run_name",
        "project",
        "disable_tqdm",
        "skip_memory_metrics",
    ),
    *("do_train", "local_rank", "torch_empty_cache_steps", "enable_jit_checkpoint", "dataset_kwargs"),
    *("gradient_checkpointing", "gradient_checkpointing_kwargs", "padding_free"),
    *("activation_checkpointing", "activation_checkpointing_kwargs", "activation_offloading"),
}
NOT_FREE = ("dataloader_drop_last", "logging_nan_inf_filter")
# How a step is split: free as long as the step itself stays the same.
SPLIT = ("per_device_train_batch_size", "gradient_accumulation_steps")


def find_checkpoint(directory: Path) -> Path | None:
    """Return the newest whole checkpoint in `directory`, or None."""
    return next((path for path in reversed(checkpoints(directory)) if find_fault(path) is None), None)


def find_fault(checkpoint: Path) -> str | None:
    """Return why a checkpoint cannot be continued, as a clause; None where it is whole."""
    if not is_complete(checkpoint):
        return "not written to its end"
    return find_damage(checkpoint)


def checkpoints(directory: Path) -> list[Path]:
    """Return the checkpoints in `directory` by step, incomplete ones included."""
    found = []
    for path in directory.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        number = path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
        if path.is_dir() and number.isdecimal():
            found.append((int(number), path))
    return [path for _, path in sorted(found)]


def is_complete(checkpoint: Path) -> bool:
    """Return whether a checkpoint was written to its end, with all that a resumed run needs."""
    try:
        for name in (RESUME_NAME, TRAINER_STATE_NAME):
            json.loads((checkpoint / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def open_checkpoint(checkpoint: Path) -> dict[str, Any]:
    """Return the content of a checkpoint's `resume.json`.

    Raises:
        UserError: there is no such checkpoint, or it cannot be continued.
    """
    if not checkpoint.is_dir():
        raise UserError(f"--resume_from_checkpoint {checkpoint}: no such directory. Expected a checkpoint-N directory.")
    if not is_complete(checkpoint):
        raise UserError(
            f"--resume_from_checkpoint {checkpoint}: expected a complete checkpoint of `train run`, with {RESUME_NAME} "
            f"and {TRAINER_STATE_NAME}. It was not written to its end, or with --save_only_model, or by another "
            "program. Give true for the newest whole one of --output_dir, or start anew with --model."
        )
    if damage := find_damage(checkpoint):
        raise UserError(
            f"--resume_from_checkpoint {checkpoint}: {damage}. Give true for the newest whole one of --output_dir, or "
            "restore the file."
        )
    return json.loads((checkpoint / RESUME_NAME).read_text(encoding="utf-8"))


def training_settings(args: Any, num_processes: int) -> dict[str, Any]:
    """Return the settings of a run that its numbers depend on, as they come back from JSON."""
    step = args.per_device_train_batch_size * args.gradient_accumulation_steps * num_processes
    settings = {
        name: value
        for name, value in args.to_dict().items()
        if name in NOT_FREE or not (name in FREE or name in SPLIT or name.startswith(FREE_PREFIXES))
    }
    return json.loads(json.dumps({**settings, "sequences_per_step": step}, default=str))


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return what differs between two runs' settings, one clause each; a name that only one has is not compared."""
    return [
        f"{name} was {before[name]}, is {now[name]}" for name in before if name in now and before[name] != now[name]
    ]


class ResumableTrainer(SFTTrainer):
    """TRL's trainer, with checkpoints that hold everything.

    A subclass sets `objective` before, and `run_state` and `speed` after, this class's `__init__`. `origin` is what the
    run was started from, beside its arguments: JSON values by name, such as the shards' hashes.
    """

    objective: Objective
    run_state: RunState

    def __init__(self, *arguments: Any, **keywords: Any):
        """Set TRL's trainer up."""
        super().__init__(*arguments, **keywords)
        self.origin: dict[str, Any] = {}
        self.settings: dict[str, Any] = {}  # those that the run's numbers depend on
        self.checkpoint: Path | None = None  # that this call goes on from
        self.continued: dict[str, Any] | None = None  # its resume.json
        self.add_callback(_Continue(self))

    def train(self, resume_from_checkpoint: str | bool | None = None, **keywords: Any) -> Any:
        """Train; `resume_from_checkpoint` is a checkpoint, or True for the newest whole one, if there is any.

        Raises:
            UserError: the checkpoint cannot be continued or is damaged, or was made with other settings or data.
        """
        checkpoint = resume_from_checkpoint or None
        if checkpoint is True:
            checkpoint = find_checkpoint(Path(self.args.output_dir))
        own = self.objective.settings.resolved()
        self.settings = training_settings(self.args, self.accelerator.num_processes) | json.loads(json.dumps(own))
        self.checkpoint = self.continued = None
        if checkpoint is not None:
            self.checkpoint = Path(checkpoint)
            self.continued = open_checkpoint(self.checkpoint)
            self._compare(self.checkpoint)
        return super().train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint), **keywords)

    def _compare(self, checkpoint: Path) -> None:
        settings, origin = self.continued["settings"], self.continued["origin"]
        if origin.get("eval_fraction") and "eval_seed" not in origin:  # a checkpoint of when --seed chose held-out ones
            origin = {**origin, "eval_seed": settings["seed"]}
        found = changes(settings, self.settings) + changes(origin, self.origin)
        if found:
            raise UserError(
                f"--resume_from_checkpoint {checkpoint}: this run differs from the one that is to be continued: "
                f"{'; '.join(found)}. Give the same settings and shards, or start a new run from those weights with "
                f"--model {checkpoint} and another --output_dir."
            )

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Make a checkpoint that is about to be written over incomplete first; write down what its files were."""
        path = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save:
            (path / RESUME_NAME).unlink(missing_ok=True)
            (path / CHECKSUMS_NAME).unlink(missing_ok=True)
        super()._save_checkpoint(model, trial)
        if self.args.should_save and (path / CHECKSUMS_NAME).exists():  # not with --save_only_model
            add_checksum(path, TRAINER_STATE_NAME)

    def _save_rng_state(self, output_dir: str) -> None:
        """Write what transformers does not, and wait until every rank has written its part."""
        super()._save_rng_state(output_dir)
        if tensors := self.run_state.tensors():
            torch.save(tensors, self._tensors_path(Path(output_dir)))
        content = self._progress()
        if self.args.should_save:
            write_json(Path(output_dir) / RESUME_NAME, content)
        self.accelerator.wait_for_everyone()  # every rank's part is there
        if self.args.should_save:
            write_checksums(Path(output_dir), without=[TRAINER_STATE_NAME])
        # The caller now writes trainer_state.json, which completes the checkpoint.

    def _progress(self) -> dict[str, Any]:
        loss = self._sum_over_ranks(self._tr_loss.detach().clone()) / self.accelerator.num_processes
        before = self.continued["loss_total"] if self.continued else 0.0
        return {
            "step": self.state.global_step,
            "settings": self.settings,
            "split": {name: getattr(self.args, name) for name in SPLIT} | {"processes": self.accelerator.num_processes},
            "origin": self.origin,
            "run_state": self.run_state.state_dict(self._sum_over_ranks),
            "num_tokens": self._total_train_tokens,
            "speed": self.speed.state(),
            "loss_total": before + self._total_loss_scalar + float(loss),
            "loss_since_log": float(loss),
            "last_logged_step": self._globalstep_last_logged,
            "metrics_since_log": dict(self._metrics["train"]),
        }

    def _tensors_path(self, checkpoint: Path) -> Path:
        return checkpoint / f"run_state_{self.args.process_index}.pt"

    def restore(self) -> None:
        """Take up what `resume.json` holds; the base class has just set its own counters to zero."""
        saved = self.continued
        if saved is None:
            return
        self.run_state.load_state_dict(saved["run_state"], self.accelerator.is_main_process, self.args.device)
        path = self._tensors_path(self.checkpoint)
        if path.exists():  # not where there were fewer ranks, or nothing was guessed
            self.run_state.load_tensors(torch.load(path, map_location="cpu", weights_only=True))
        self._total_train_tokens = saved["num_tokens"]
        if "speed" in saved:  # not in checkpoints of earlier versions
            self.speed.restore(saved["speed"])
        self._tr_loss += saved["loss_since_log"]
        self._total_loss_scalar = -saved["loss_since_log"]  # it is in loss_total already
        self._globalstep_last_logged = saved["last_logged_step"]
        self._metrics["train"].clear()
        self._metrics["train"].update(saved["metrics_since_log"])
        # transformers keeps the intervals of the checkpoint and only warns; the flags of this run are meant.
        self.state.compute_steps(self.args, self.state.max_steps)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Leave out weights that are tied to others: they are not missing from a checkpoint that holds the others."""
        tied = set(getattr(self.model, "_tied_weights_keys", None) or ())
        missing = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))

    def _run_epoch(self, *arguments: Any, **keywords: Any) -> None:
        """Do nothing where the checkpoint was the last one: transformers would run one step too many."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*arguments, **keywords)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Give the mean loss over the whole run, where transformers gives that of the steps since the resume."""
        if "train_loss" in logs and self.continued is not None:
            total = self.continued["loss_total"] + self._total_loss_scalar
            logs["train_loss"] = total / max(self.state.global_step, 1)
        super().log(logs, start_time)


class _Continue(TrainerCallback):
    """Restore a trainer's counters before its first step, and time its checkpoints so that none lacks a log line."""

    def __init__(self, trainer: ResumableTrainer):
        self.trainer = trainer
        self.is_put_off = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restore."""
        self.trainer.restore()
        if self.trainer.continued is not None:
            args.eval_on_start = False  # it was evaluated when the run was started

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put a checkpoint off that would be followed by the epoch's own log lines, which a resumed run would miss."""
        is_last = float(state.epoch).is_integer() or control.should_training_stop
        if control.should_save and is_last and "epoch" in (args.eval_strategy, args.logging_strategy):
            control.should_save, self.is_put_off = False, True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the checkpoint that was put off, after the evaluation."""
        control.should_save |= self.is_put_off
        self.is_put_off = False
