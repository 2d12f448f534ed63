"""What a point took: time, devices, tokens, steps done twice.

What enters: `run.json` of its runs. What leaves: a `Cost`. Next: the report's table of costs.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from train.comparison.reading.points import Point

SECONDS = 3600.0


@dataclass(frozen=True)
class Cost:
    """Sums and means over a point's runs; None where the runs do not say it."""

    point: str
    num_runs: int
    device: str
    is_gpu: bool
    device_hours: float | None  # all runs: seconds × processes / 3600
    run_s: float | None  # mean
    tokens_per_s: float | None  # mean
    tokens_seen: float | None  # mean
    steps: float | None  # mean
    redone_steps: int  # all runs


def point_cost(point: Point) -> Cost:
    """Return what a point's runs took."""
    contents = [run.content for run in point.runs]
    devices = list(dict.fromkeys(content.get("device") for content in contents if content.get("device")))
    seconds = [content.get("train_runtime_s") for content in contents]
    processes = [content.get("num_processes") or content.get("run", {}).get("workers") or 1 for content in contents]
    hours = None if None in seconds else sum(s * p for s, p in zip(seconds, processes, strict=True)) / SECONDS
    return Cost(
        point.name,
        len(point.runs),
        ", ".join(devices) or "unknown",
        bool(devices) and not any("thread" in device for device in devices),
        hours,
        _mean(seconds),
        _mean(content.get("tokens_per_s") or None for content in contents),  # 0 where nothing was left to do
        _mean(content.get("tokens_seen") for content in contents),
        _mean(content.get("steps") for content in contents),
        sum(content.get("redone", {}).get("num_redone_steps", 0) for content in contents),
    )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
