"""Whether documents that share a row are blind to each other: tried out on the model itself, before training.

What enters: a model, TRL's padding-free collator, and the context that a training step computes in. What leaves:
nothing, or a `UserError`.

Packed rows tell documents apart by position ids that start anew, and by the boundaries that the collator adds for
variable-length kernels. Models whose masks are built by transformers' common functions honour them with every attention
implementation, on a CPU too; others (Bloom, OPT, Mamba, Falcon with ALiBi) drop them without a word, and documents then
see those before them in their row. Which model does what is not written down anywhere, so it is measured, under the
autocast of the step: kernels that know half precision alone would refuse a float32 checkpoint outside of it.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from common.errors import UserError

LENGTH = 8  # tokens of each of the two documents
NEED_GPU = ("flash_attention_2", "flash_attention_3", "flash_attention_4")
LEAK = 0.05  # of what a document's own tokens change; a kernel whose rounding depends on its batch stays far below


def check_isolation(model: Any, collator: Any, autocast: Callable[[], AbstractContextManager] = nullcontext) -> None:
    """Replace the first document of a row, and see whether the predictions of the second one change.

    Costs three forward passes over 16 tokens. Left out for a sharded model, and for one on a CPU whose attention kernel
    needs a GPU. `autocast` makes the context that steps run in (accelerate's own).

    Raises:
        UserError: they change, or the kernel does not take the dtype that steps would give it.
    """
    parameters = list(model.parameters())
    config = model.config.get_text_config()
    attention = config._attn_implementation or "none"
    device = parameters[0].device
    if any(parameter.is_meta or parameter.numel() == 0 or hasattr(parameter, "placements") for parameter in parameters):
        return
    if device.type == "cpu" and attention in NEED_GPU:
        return
    first, other, second, third = np.random.default_rng(0).integers(0, config.vocab_size, (4, LENGTH))
    half = LENGTH // 2
    changed = np.concatenate([third[:half], second[half:]])  # the second document with another beginning
    was_training = model.training
    model.eval()
    try:
        with autocast():
            before = _predictions(model, collator, first, second)
            across = (_predictions(model, collator, other, second) - before).abs().max().item()
            within = (_predictions(model, collator, first, changed) - before)[half:].abs().max().item()
    except RuntimeError as error:
        if "fp16" not in str(error) and "bf16" not in str(error):
            raise
        raise UserError(
            f"--attn_implementation {attention}: its kernel takes half precision alone ({error}), and steps would "
            f"compute in {parameters[0].dtype}. Add --bf16 true, load the model with --dtype bfloat16, or use "
            "--attn_implementation sdpa."
        ) from error
    finally:
        model.train(was_training)
    if across > LEAK * within:
        raise UserError(
            f"--packing, --padding_free: with {type(model).__name__} and attention {attention}, documents in one row "
            f"see each other: replacing one changed the next one's log-probabilities by up to {across:.2g} (replacing "
            f"its own beginning: {within:.2g}), where nothing should change. Train without packing, or with a model or "
            "an --attn_implementation that keeps packed documents apart."
        )


def _predictions(model: Any, collator: Any, *documents: np.ndarray) -> torch.Tensor:
    """Return the log-probabilities [LENGTH - 1] of the last document's tokens."""
    batch = collator([{"input_ids": ids, "labels": ids} for ids in documents])
    device = next(model.parameters()).device
    batch = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
    with torch.no_grad():
        return model(**batch, use_cache=False, fused_lm_head=True).log_probs[0, -(LENGTH - 1) :].float()
