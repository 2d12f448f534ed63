"""What the runs of a sweep will take: steps, time and disk.

What enters: the runs, each point's size, what is on disk already. What leaves: the table of `--dry-run` and the line on
disk. Steps are counted as transformers counts them; time needs a step that was measured in this directory; disk comes
from the model's own files, or from a finished run. What is not known is said to be unknown.
"""

import json
import math
import shutil
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.storage import Location, locate
from train.sweeps.progress import finished_progress, running_progress
from train.sweeps.state import Run, last_checkpoint_step, run_state
from train.sweeps.validation import Size

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
ADAM_BYTES = 8  # two float32 a parameter
HEADER = ("run", "state", "steps", "left", "documents", "s/step", "time left")


def measured_steps(runs: Sequence[Run]) -> dict[str, float]:
    """Return the seconds a step has taken, by point, the median over its runs; under "" over all of them."""
    found: dict[str, list[float]] = {}
    for run in runs:
        state = run_state(run.directory)
        if state == "waiting":
            continue
        progress = (finished_progress if state == "finished" else running_progress)(run.directory)
        if progress.step_s:
            for name in (run.point.name, ""):
                found.setdefault(name, []).append(progress.step_s)
    return {name: sorted(values)[len(values) // 2] for name, values in found.items()}


def dry_run_lines(runs: Sequence[Run], sizes: Mapping[str, Size], at_once: float) -> list[str]:
    """Return the table of runs, what each takes and what is left of it, and a line for all of them.

    Args:
        runs: of the sweep.
        sizes: by point.
        at_once: how many runs go on at the same time.
    """
    step_s = measured_steps(runs)
    rows, total_left, total_s = [], 0, 0.0
    counts: dict[str, int] = {}
    for run in runs:
        state, size = run_state(run.directory), sizes[run.point.name]
        counts[state] = counts.get(state, 0) + 1
        left = 0 if state == "finished" else max(size.steps - last_checkpoint_step(run.directory), 0)
        pace = step_s.get(run.point.name, step_s.get(""))
        total_left += left
        total_s += left * (pace or math.nan)
        shown = "–" if pace is None else f"{pace:.2f}"
        rows.append(
            (
                run.name,
                state,
                f"{size.steps:,}",
                f"{left:,}",
                f"{size.steps * size.per_step:,}",
                shown,
                "–" if not left else "unknown" if pace is None else duration(left * pace),
            )
        )
    widths = [max(len(row[column]) for row in (HEADER, *rows)) for column in range(len(HEADER))]
    aligned = [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (HEADER, *rows)
    ]
    states = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    time = "no step has been measured here yet, so the time is unknown"
    if step_s or not total_left:
        time = f"about {duration(total_s / max(at_once, 1))} at {at_once:g} runs at once, and their start"
    return [*aligned, "", f"{len(runs)} runs: {states}; {total_left:,} steps left: {time}"]


def disk_line(out: Path, runs: Sequence[Run], settings: Mapping[str, Any], keep: str, at_once: float) -> str:
    """Return what disk the sweep takes: what stays of its runs, what a run needs while it goes on, what is free.

    Args:
        out: the sweep's directory.
        runs: of the sweep.
        settings: of any point, its preset's included.
        keep: metrics, model or all.
        at_once: how many runs go on at the same time.
    """
    free = shutil.disk_usage(next(path for path in (out, *out.absolute().parents) if path.exists())).free
    left = [run for run in runs if run_state(run.directory) != "finished"]
    finished = [run for run in runs if run not in left]
    num_parameters = None if settings.get("use_peft") else count_parameters(settings)
    weights = under_way = None
    if num_parameters is not None:
        weights = num_parameters * BYTES.get(str(settings.get("dtype", "float32")), 4)
        under_way = weights + 2 * (weights + num_parameters * ADAM_BYTES)  # the model, an older checkpoint and a newer
    if str(settings.get("save_strategy", "steps")) == "no":
        under_way = weights
    kept = {"metrics": 0, "model": weights, "all": None if weights is None else under_way}[keep]
    if finished:
        kept = max(sum(f.stat().st_size for f in run.directory.rglob("*") if f.is_file()) for run in finished)
    if kept is None or under_way is None:
        return (
            f"disk: unknown until a run has finished (--keep {keep}; the model's files are not on this machine yet, or "
            f"an adapter is trained); {size_text(free)} free"
        )
    at_once = min(at_once, len(left))
    needed = kept * len(left) + under_way * at_once
    least = "at least " if keep == "all" else ""
    text = (
        f"disk: {least}{size_text(kept)} stay of each run (--keep {keep}), {size_text(under_way)} more of each under "
        f"way: {least}{size_text(needed)} for the {len(left)} left, {size_text(free)} free"
    )
    if needed > free:
        text += ": NOT ENOUGH" + ("; --keep metrics takes less" if keep != "metrics" else "")
    return text


def count_parameters(settings: Mapping[str, Any]) -> int | None:
    """Return the number of a model's parameters from its files' headers, or None where they are not here."""
    name = str(settings.get("model") or settings.get("model_name_or_path") or "tiny")
    shards = settings.get("shards")
    if name == "tiny":
        return _tiny_parameters(locate(str(shards[0] if isinstance(shards, list) else shards)))
    directory = Path(name) if Path(name).is_dir() else _cached(name)
    files = sorted(directory.glob("*.safetensors")) if directory else []
    try:
        return sum(map(_parameters, files)) or None
    except (OSError, ValueError, KeyError, struct.error):
        return None


def _parameters(file: Path) -> int:
    """Return the number of elements that a safetensors file says it holds."""
    with open(file, "rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def _tiny_parameters(shards: Location) -> int | None:
    """Return those of `--model tiny`: a row of 64 for each token, and 4 layers of 49,280 (measured)."""
    try:
        content = (shards / "tokenizer" / "tokenizer.json").read_json()
        vocabulary = len(content["model"]["vocab"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return 64 * vocabulary + 4 * 49_280 + 64


def _cached(name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def duration(seconds: float) -> str:
    """Return a duration as people say it."""
    if math.isnan(seconds):
        return "unknown"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def size_text(size: float) -> str:
    """Return bytes in the decimal unit that fits."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
