"""How a run's documents lie in a batch, and which attention reads them: decided before the model is loaded.

What enters: the settings, what the user set, the model's configuration and the device. What leaves: a layout and why.
Next: `run.py` sets `--padding_free` accordingly, and the model's attention.

Padding is work and memory for nothing: with batches of 8, 63 % of LIMA's and 49 % of Alpaca's positions. Laid end to
end, documents need attention that knows their lengths; without such a kernel, a mask over the whole row takes back more
than padding costs, so the default on a CPU stays padded rows.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

import torch

from train.loop.attention import HALF, KNOWN_LAYERS

LARGEST_HEAD = 256  # of FlashAttention's kernels
OLDEST = (8, 0)  # compute capability: Ampere


class Layout(NamedTuple):
    """What was decided."""

    padding_free: bool
    lengths: bool  # attention is told lengths (`attention.py`), where the model agrees
    why: str


def decide(
    args: Any,
    given: Collection[str],
    attention: str | None,
    config: Any,
    device: str,
    capability: tuple[int, int] | None,
) -> Layout:
    """Return the layout.

    Args:
        args: the settings.
        given: names that the user set.
        attention: `--attn_implementation`, or None.
        config: the model's configuration, or None where it is not known yet (`tiny`).
        device: "cpu", "cuda" or another type.
        capability: of a CUDA device.
    """
    flat = bool(args.padding_free or args.packing)
    asked = flat or "padding_free" in given  # --packing false says nothing about padding
    reason = _without_lengths(args, attention, config, device, capability)
    if asked:
        if not flat:
            return Layout(False, False, "padded rows, as asked")
        name = "packed" if args.packing else "padding-free"
        how = f"attention {attention}" if attention else reason or "attention is told lengths"
        return Layout(bool(args.padding_free), reason is None, f"{name}, {how}")
    if device != "cuda":
        return Layout(
            False, False, f"padded rows, the default on {device}; --padding_free true lays documents end to end"
        )
    if attention is not None and "flash" in attention and _supports(args):
        return Layout(True, False, f"padding-free, attention {attention}")
    if reason is None:
        return Layout(True, True, "padding-free, torch's variable-length attention")
    return Layout(False, False, f"padded rows: {reason}")


def _supports(args: Any) -> bool:
    return not (args.torch_compile or args.deepspeed or args.parallelism_config)


def _without_lengths(
    args: Any, attention: str | None, config: Any, device: str, capability: tuple[int, int] | None
) -> str | None:
    """Return why attention is not told lengths, as a clause; None where it is."""
    if attention is not None:
        return f"--attn_implementation {attention} was asked for"
    if not _supports(args):
        return "torch.compile, DeepSpeed and other kinds of parallelism keep the model's own attention"
    text = config.get_text_config() if config is not None else None
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    if not kinds <= KNOWN_LAYERS:
        return f"the model has layers of {', '.join(sorted(kinds - KNOWN_LAYERS))}"
    if getattr(text, "attn_logit_softcapping", None):
        return "the model caps its attention scores"
    if device != "cuda":
        return None
    compute = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
    if compute not in HALF:
        return "the kernel takes half precision alone; --bf16 true"
    if capability is not None and capability < OLDEST:
        return f"the kernel needs compute capability 8.0, this GPU has {capability[0]}.{capability[1]}"
    size = getattr(text, "head_dim", None) or (text.hidden_size // text.num_attention_heads if text is not None else 0)
    if size > LARGEST_HEAD or size % 8:
        return f"the kernel takes heads of up to {LARGEST_HEAD} in steps of 8, the model's have {size}"
    if getattr(text, "attention_dropout", 0.0):
        return "the kernel has no dropout of attention weights"
    return None
