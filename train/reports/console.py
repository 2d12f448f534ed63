"""What a run prints, and the lines it appends to `metrics.jsonl`.

What enters: the trainer's log lines. What leaves: one short line each on the terminal, and one JSON object each in the
output directory.
"""

import json
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from train.reports.curves import group_curves

METRICS_NAME = "metrics.jsonl"
GROUP_NAMES = {0.0: "unimportant", 1.0: "important"}


class ConsoleCallback(TrainerCallback):
    """Print one line a log entry, in place of the base trainer's dictionaries and bars."""

    def __init__(self) -> None:
        """Start counting at the first step."""
        self.started: float | None = None
        self.first_step = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remember when the run, or the resumed part of it, began."""
        self.started, self.first_step = time.monotonic(), state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Print the entry."""
        if not state.is_world_process_zero or not logs:
            return
        if "loss" in logs:
            print(f"step {state.global_step:>5}/{state.max_steps}  {_curves(logs)}{self._left(state)}", flush=True)
        elif "eval_loss" in logs:
            held_out = {name.removeprefix("eval_"): value for name, value in logs.items()}
            print(f"held out, step {state.global_step}  {_curves(held_out)}", flush=True)

    def _left(self, state: Any) -> str:
        done = state.global_step - self.first_step
        if self.started is None or not done:
            return ""
        step_s = (time.monotonic() - self.started) / done
        left_s = step_s * (state.max_steps - state.global_step)
        return f"  {step_s:.2f} s/step, {left_s // 60:.0f}:{left_s % 60:02.0f} left"


def _curves(logs: dict[str, float]) -> str:
    parts = [f"loss {logs['loss']:.4f}"]
    of_groups = [name.removeprefix("loss_") for name in group_curves(logs)]
    parts += [
        f"{name.replace('_', ' ')} {logs[f'loss_{name}']:.4f}" for name in ("all", *of_groups) if f"loss_{name}" in logs
    ]
    if "worst_group" in logs:
        worst = logs["worst_group"]
        parts.append(f"worst {GROUP_NAMES.get(worst, f'{worst:.2f}') if len(of_groups) <= 2 else f'{worst:g}'}")
    if "lambda" in logs:
        parts.append(f"λ {logs['lambda']:.3f}")
    if "important_share" in logs:
        parts.append(f"share {logs['important_share']:.3f}")
    if "tokens_per_s" in logs:
        parts.append(f"{logs['tokens_per_s']:,.0f} tokens/s")
    if "mfu" in logs:
        parts.append(f"MFU {logs['mfu']:.1%}")
    return "  ".join(parts)


class MetricsCallback(TrainerCallback):
    """Append every log entry to `metrics.jsonl` in the output directory."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the lines up to the step that the run resumes from, and nothing from beyond it."""
        if not state.is_world_process_zero:
            return
        path = Path(args.output_dir) / METRICS_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(map(_line, state.log_history)), encoding="utf-8")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Append the entry."""
        if state.is_world_process_zero and state.log_history:
            with open(Path(args.output_dir) / METRICS_NAME, "a", encoding="utf-8") as file:
                file.write(_line(state.log_history[-1]))


def _line(entry: dict[str, float]) -> str:
    """Return an entry's line: the step first, and in one order before and after a resume."""
    first = [name for name in ("step", "epoch", "loss", "eval_loss") if name in entry]
    return json.dumps({name: entry[name] for name in [*first, *sorted(set(entry) - set(first))]}) + "\n"
