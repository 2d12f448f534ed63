"""How far a run is, read from what it leaves while it goes on.

What enters: a run's directory. What leaves: its step, loss and time left, from the last log line of the attempt; and of
a finished run what `run.json` says. Nothing is sent by the runs: whoever sees the directory can look. Next: `table.py`
shows it, `estimates.py` measures a step by it.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from train.sweeps.process import tail
from train.sweeps.state import LOG_NAME, RUN_NAME

# As `train.reports.console` prints it: step     4/20  loss 8.2000  …  0.80 s/step, 0:12 left
STEP = re.compile(r"^step +(\d+)/(\d+) +loss +(\S+)")
PACE = re.compile(r"([\d.]+) s/step, (\S+) left")


@dataclass(frozen=True)
class Progress:
    """Where a run stands; None where it is not known."""

    step: int | None = None
    num_steps: int | None = None
    loss: float | None = None  # of the last step, over all supervised tokens
    step_s: float | None = None
    left: str | None = None  # as m:ss
    said: str | None = None  # the last line, before the first step
    held_out: float | None = None  # the loss of held-out documents, of a finished run


def running_progress(directory: Path) -> Progress:
    """Return where a running run stands."""
    lines = tail(directory / LOG_NAME, 400)
    for line in reversed(lines):
        if line.startswith("--- "):
            break
        if step := STEP.match(line):
            pace = PACE.search(line)
            return Progress(
                step=int(step[1]),
                num_steps=int(step[2]),
                loss=float(step[3]),
                step_s=float(pace[1]) if pace else None,
                left=pace[2] if pace else None,
            )
    return Progress(said="starting")


def finished_progress(directory: Path) -> Progress:
    """Return what a finished run has come to."""
    try:
        content = json.loads((directory / RUN_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return Progress()
    metrics = content.get("final_metrics", {})
    steps, runtime_s = content.get("steps"), content.get("train_runtime_s")
    step_s = runtime_s / steps if steps and runtime_s else None
    return Progress(
        step=steps,
        num_steps=steps,
        loss=metrics.get("loss_all", metrics.get("loss")),
        held_out=metrics.get("eval_loss_all"),
        step_s=step_s,
    )
