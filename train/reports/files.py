"""What stays of a run beside its checkpoint: `run.json` and `loss_curves.png`.

What enters: the configuration, the data report, the trainer's log history. What leaves: two files in the output
directory, and the last lines on the terminal.
"""

import itertools
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from common.files import atomic_path, write_json
from common.manifest import product_version
from common.shards import ShardDirectory
from train.reports.curves import group_curves

RUN_NAME = "run.json"
CURVES_NAME = "loss_curves.png"
COLORS = ("tab:red", "tab:blue", "tab:green", "tab:orange", "tab:purple", "tab:brown", "tab:pink", "tab:gray")
LIBRARIES = ("torch", "transformers", "trl", "accelerate", "datasets", "pyarrow", "numpy")


def write_run(path: Path, content: dict[str, Any], shards: list[ShardDirectory], device: str) -> None:
    """Write `run.json`: `content`, the shards' identities, the versions and the machine."""
    identity = [
        {
            "path": str(directory.path),
            "manifest_sha256": directory.digest,
            "documents": directory.manifest.counts.documents,
            "tokenizer": directory.manifest.tokenizer.name,
            "tokenizer_fingerprint": directory.manifest.tokenizer.fingerprint,
        }
        for directory in shards
    ]
    versions = {"sft-go": product_version(), "python": platform.python_version()}
    versions |= {name: version(name) for name in LIBRARIES}
    write_json(path, {**content, "shards": identity, "versions": versions, "device": device})


def final_metrics(history: list[dict[str, float]]) -> dict[str, float]:
    """Return the last value of every metric of a log history."""
    last: dict[str, float] = {}
    for entry in history:
        last |= entry
    return last


def draw_curves(path: Path, history: list[dict[str, float]], title: str) -> bool:
    """Draw important against unimportant loss over the steps, as in the paper's figure 2, and mark the worst group.

    Returns:
        Whether there was anything to draw.
    """
    steps = [entry for entry in history if "loss_all" in entry]
    if not steps:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    grouped = [entry for entry in steps if "worst_group" in entry]
    names = group_curves({name: None for entry in grouped for name in entry}) if grouped else []
    colors = itertools.cycle(COLORS)
    lines = [(name, name.removeprefix("loss_").replace("_", " "), next(colors)) for name in names]
    for name, label, color in lines or (("loss_all", "all supervised tokens", "black"),):
        points = [(entry["step"], entry[name]) for entry in steps if name in entry]
        axes.plot(*zip(*points, strict=True), label=label, color=color, linewidth=1.2)
        held_out = [(entry["step"], entry[f"eval_{name}"]) for entry in history if f"eval_{name}" in entry]
        if held_out:
            axes.plot(*zip(*held_out, strict=True), "o--", color=color, label=f"{label}, held out", markersize=4)
    for index, (_, label, color) in enumerate(lines):
        group = len(lines) - 1 - index
        at = [(entry["step"] - 0.5, 1) for entry in grouped if round(entry["worst_group"] + 1e-9) == group]
        if at:  # a strip along the bottom: which group was the worst
            strip: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "alpha": 0.45, "linewidth": 0}
            axes.broken_barh(at, (0, 0.025), facecolors=color, label=f"worst group: {label}", **strip)
    axes.set(xlabel="optimizer step", ylabel="mean cross-entropy (nats)", title=title)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    pyplot.close(figure)
    return True


def device_name() -> str:
    """Return the machine's accelerator, or its processor."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"{platform.processor() or platform.machine()}, {threads} thread{'' if threads == 1 else 's'}"
