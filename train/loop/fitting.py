"""What a run's device asks for: how rows are laid out, whether layers are recomputed, how products round.

What enters: the configuration of the run and of the model, and the data, before any weight is loaded. What leaves: the
training arguments with those settings that the user left open, and what the preflight says about them. Next: `run.py`
loads the model.
"""

import logging
from typing import Any, NamedTuple

import numpy as np
import torch

from train.loop.layout import Layout, decide
from train.reports.memory import Estimate, available_bytes, choose, estimate, largest_batch, memory_lines

LOGGER = logging.getLogger(__name__)
SMALL = 2**26  # weights + tokens × width × layers: below it nothing is estimated, since anything fits


class Fitting(NamedTuple):
    """What was decided."""

    layout: Layout
    memory: Estimate | None
    lines: list[tuple[str, str]]  # for the preflight


def fit(
    args: Any, given: frozenset[str], model_args: Any, config: Any, rows: Any, peft_config: Any, can_split: bool
) -> Fitting:
    """Settle what the user left open.

    Args:
        args: the training arguments, changed in place.
        given: names that the user set.
        model_args: TRL's `ModelConfig`.
        config: the model's configuration.
        rows: the training rows, packed where they are to be.
        peft_config: of an adapter, or None.
        can_split: the step's size was given, so that more and smaller micro-batches may make it up.
    """
    device = args.device
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    layout = decide(args, given, model_args.attn_implementation, config, device.type, capability)
    args.padding_free = layout.padding_free
    if device.type == "cuda" and args.tf32 is None and (args.bf16 or args.fp16):
        torch.set_float32_matmul_precision("high")  # what autocast leaves in float32; --bf16 false keeps all 24 bits
    lengths = row_lengths(rows)
    flat = bool(args.padding_free or args.packing)
    masked = flat and not layout.lengths and not _is_flash(model_args)
    batch = largest_batch(lengths, args, flat, masked)
    lines = [("rows", f"{layout.why}{_padding(lengths, args, flat)}")]
    if _is_small(config, batch) or model_args.load_in_4bit or model_args.load_in_8bit:
        return Fitting(layout, None, lines)
    available, where = available_bytes(device)
    settled = given & {"gradient_checkpointing", "activation_checkpointing"}
    may_split = not given & {"per_device_train_batch_size", "gradient_accumulation_steps"} and can_split
    try:
        while True:
            if settled:
                checkpointing = bool(args.gradient_checkpointing or args.activation_checkpointing)
                found = estimate(config, batch, args, model_args.dtype, peft_config, checkpointing)
            else:
                found = choose(config, batch, args, model_args.dtype, peft_config, available)
            if found.fits(available) or not may_split or args.per_device_train_batch_size % 2:
                break
            args.per_device_train_batch_size //= 2  # the step stays what it is, and its gradient with it
            args.gradient_accumulation_steps *= 2
            batch = largest_batch(lengths, args, flat, masked)
    except Exception as error:  # any architecture may come, and what it does without data is not known
        LOGGER.debug("no estimate", exc_info=True)
        return Fitting(layout, None, [*lines, ("memory", f"not estimated: {type(error).__name__} in the model's code")])
    return Fitting(layout, found, [*lines, *memory_lines(found, available, where, args)])


def row_lengths(rows: Any) -> np.ndarray:
    """Return the number of tokens of each row, int64, without reading the tokens."""
    import pyarrow.compute as pc

    return pc.list_value_length(rows.data.column("input_ids")).to_numpy().astype(np.int64)


def _is_flash(model_args: Any) -> bool:
    return "flash" in (model_args.attn_implementation or "")


def _is_small(config: Any, batch: Any) -> bool:
    text = config.get_text_config()
    width, layers = getattr(text, "hidden_size", 4096), getattr(text, "num_hidden_layers", 64)
    weights = 12 * width**2 * layers + width * (getattr(text, "vocab_size", None) or 2**17)
    return weights + batch.rows * batch.columns * width * layers < SMALL


def _padding(lengths: np.ndarray, args: Any, flat: bool) -> str:
    """Return the share of padding that batches of these rows would have in random order, as a clause."""
    size = args.per_device_train_batch_size
    if args.packing or size == 1 or len(lengths) < size:
        return ""
    share = padding_share(lengths, size)
    return (
        f"; padded, {share:.0%} of a batch of {size} would be padding" if flat else f"; {share:.0%} of them is padding"
    )


def padding_share(lengths: np.ndarray, size: int, seed: int = 0) -> float:
    """Return the share of positions that padding takes in batches of `size` rows, dealt at random."""
    order = np.random.default_rng(seed).permutation(len(lengths))[: len(lengths) // size * size]
    batches = lengths[order].reshape(-1, size)
    return 1 - float(batches.sum()) / float((batches.max(axis=1) * size).sum())
