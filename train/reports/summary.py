"""What a run says when it has finished.

What enters: its last metrics and its settings. What leaves: lines for the terminal, the last one with the next command.
"""

import math
from pathlib import Path

from train.objectives import OBJECTIVES
from train.reports.console import METRICS_NAME
from train.reports.files import CURVES_NAME, RUN_NAME
from train.settings.config import Configuration


def summary_lines(output: Path, metrics: dict[str, float], drawn: bool, configuration: Configuration) -> list[str]:
    """Return the lines: losses, what was written, what to do next; `drawn` says whether the curves were."""
    names = ("loss_all", "loss_important", "loss_unimportant", "eval_loss_all")
    losses = ", ".join(f"{name} {metrics[name]:.4f}" for name in names if name in metrics)
    runtime_s = metrics.get("train_runtime", math.nan)
    files = [RUN_NAME, METRICS_NAME, *([CURVES_NAME] if drawn else [])]
    loads = "peft.AutoPeftModelForCausalLM" if configuration.model.use_peft else "AutoModelForCausalLM"
    lines = [
        "",
        f"finished in {runtime_s:.1f} s: {losses}",
        f"  checkpoint  {output}  (loads with {loads}.from_pretrained)",
        f"  beside it   {', '.join(files)}",
    ]
    shards = " ".join(configuration.run.shards or [])
    other = next(name for name in OBJECTIVES if name != configuration.args.objective)
    command = f"train run --shards {shards} --model {configuration.run.model} --objective {other}"
    shown = f"; `train inspect {output}` shows what it did to tokens" if configuration.run.token_losses else ""
    return [*lines, f"next: compare it with `{command}`{shown}"]
