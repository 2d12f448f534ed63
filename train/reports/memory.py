"""Whether a run fits, said before the model is loaded, and what to change where it does not.

What enters: the model's configuration, the data's lengths, the settings. What leaves: an estimate of the most memory
that one process takes, part by part, beside what its device has; lines for the preflight. Next: the run loads the
model, with activation checkpointing where the estimate says that it is needed.
"""

import dataclasses
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from train.reports.footprint import Batch, Footprint, measure

ROOM = 0.92  # of a device's memory that a run may plan with; allocators, kernels and communication take some
GIB = 2**30
# Bytes of optimizer state for a trained weight of four bytes; those of two bytes have half. Others are not known here.
STATE_BYTES = {"adamw": 8.0, "sgd": 0.0, "adafactor": 0.1, "adamw_8bit": 2.0, "lion": 4.0}


@dataclass(frozen=True)
class Estimate:
    """Bytes of one process, at their most."""

    weights: float
    gradients: float
    optimizer: float
    activations: float  # what a pass holds beside those, loss head included
    copies: float  # gathered weights and gradients on their way (FSDP2)
    batch: Batch
    checkpointing: bool

    @property
    def total(self) -> float:
        """The sum."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.copies

    def fits(self, available: float) -> bool:
        """Return whether it does."""
        return self.total <= ROOM * available


def largest_batch(lengths: np.ndarray, args: Any, flat: bool, masked: bool) -> Batch:
    """Return the largest micro-batch that the rows can make.

    Args:
        lengths: int64 [rows], tokens.
        args: the settings.
        flat: rows are laid end to end (padding-free, packed), not padded.
        masked: attention takes a mask for that; else it is told lengths.
    """
    longest = np.sort(lengths)[::-1][: args.per_device_train_batch_size]
    if flat:
        return Batch(1, int(longest.sum()), masked)
    return Batch(len(longest), int(longest[0]), bool(len(longest) > 1 and longest[0] != longest[-1]))


def estimate(
    config: Any, batch: Batch, args: Any, dtype: str | None, peft_config: Any, checkpointing: bool
) -> Estimate:
    """Return the estimate for one process of this run."""
    weights = getattr(torch, dtype) if dtype in ("float32", "bfloat16", "float16") else torch.float32
    compute = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    found = measure(
        config,
        batch,
        weights,
        None if compute == weights else compute,
        peft_config,
        checkpointing,
        accumulates=args.gradient_accumulation_steps > 1,
        state_bytes=_state_bytes(args, weights),
    )
    return _shared(found, batch, args, compute or weights, checkpointing)


def _shared(found: Footprint, batch: Batch, args: Any, compute: torch.dtype, checkpointing: bool) -> Estimate:
    gradients, alone = found.gradients, found.pass_alone
    activations = max(found.pass_with_gradients - gradients, 0)
    if args.world_size == 1 or not args.fsdp:  # DDP's buckets are the gradients' own memory (`sharding.py`)
        return Estimate(found.weights, gradients, found.optimizer, activations, 0, batch, checkpointing)
    ranks, size = args.world_size, compute.itemsize / 4
    # Two layers are gathered at a time, one's gradients are on their way in float32, and the head is whole in float32.
    copies = 2 * found.layer * size + found.layer + 2 * found.head
    return Estimate(
        found.weights / ranks, gradients / ranks, found.optimizer / ranks, alone, copies, batch, checkpointing
    )


def _state_bytes(args: Any, weights: torch.dtype) -> float:
    name = str(getattr(args.optim, "value", args.optim))
    kind = next((kind for kind in sorted(STATE_BYTES, key=len, reverse=True) if name.startswith(kind)), "adamw")
    if "8bit" in name:
        return STATE_BYTES["adamw_8bit"]
    return STATE_BYTES[kind] * weights.itemsize / 4


def available_bytes(device: torch.device) -> tuple[float, str]:
    """Return what the device has for this process, and what it is called."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory), torch.cuda.get_device_name(device)
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return float(min(limit, _cgroup_limit() or limit)), "this machine's memory"


def _cgroup_limit() -> int | None:
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(path, encoding="ascii") as file:
                return int(file.read())
        except (OSError, ValueError):
            continue
    return None


def memory_lines(found: Estimate, available: float, where: str, args: Any) -> list[tuple[str, str]]:
    """Return the preflight's rows: the parts, the sum beside what there is, and what to change where it is too much."""
    parts = [
        ("weights", found.weights),
        ("gradients", found.gradients),
        ("optimizer", found.optimizer),
        ("activations", found.activations),
        ("copies", found.copies),
    ]
    named = ", ".join(f"{name} {_gib(size)}" for name, size in parts if size)
    of = f"{found.batch.rows} × {found.batch.columns:,} tokens at most"
    if found.checkpointing:
        of += ", layers recomputed"
    verdict = "fits" if found.fits(available) else "MORE THAN THERE IS"
    rows = [
        ("memory", f"about {_gib(found.total)} of {_gib(available)} ({where}), {verdict}"),
        ("  of it", f"{named}; {of}"),
    ]
    if not found.fits(available):
        rows.append(("  to change", "; ".join(_changes(found, args)) + ", a smaller model, or a larger device"))
    return rows


def _changes(found: Estimate, args: Any) -> list[str]:
    changes = []
    if not found.checkpointing:
        changes.append("--gradient_checkpointing true")
    if args.per_device_train_batch_size > 1:
        changes.append("a smaller --per_device_train_batch_size (with --global_batch_size the step stays what it is)")
    if not args.fsdp:
        many = args.world_size > 1
        changes.append("--fsdp true" if many else "--fsdp true in several processes (--workers N)")
    changes.append("--use_peft true")
    return changes


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:.0f} MiB"


def choose(config: Any, batch: Batch, args: Any, dtype: str | None, peft_config: Any, available: float) -> Estimate:
    """Return the estimate without activation checkpointing where that fits, else the one with it."""
    plain = estimate(config, batch, args, dtype, peft_config, checkpointing=False)
    if plain.fits(available):
        return plain
    return estimate(config, batch, args, dtype, peft_config, checkpointing=True)


def parts(found: Estimate) -> dict[str, Any]:
    """Return the estimate for `run.json`, bytes."""
    values = dataclasses.asdict(found) | {"total": found.total}
    return {name: int(value) if isinstance(value, float) else value for name, value in values.items()}
