"""Whether documents that share a row are blind to each other: tried out on the model itself, before training.

What enters: a model and TRL's padding-free collator. What leaves: nothing, or a `UserError`.

Packed rows tell documents apart by position ids that start anew, and by the boundaries that the collator adds for
variable-length kernels. Models whose masks are built by transformers' common functions honour them with every attention
implementation, on a CPU too; others (Bloom, OPT, Mamba, Falcon with ALiBi) drop them without a word, and documents then
see those before them in their row. Which model does what is not written down anywhere, so it is measured.
"""

from typing import Any

import numpy as np
import torch

from common.errors import UserError

LENGTH = 8  # tokens of each of the two documents
LEAK = 0.05  # of what a document's own tokens change; a kernel whose rounding depends on its batch stays far below


def check_isolation(model: Any, collator: Any) -> None:
    """Replace the first document of a row, and see whether the predictions of the second one change.

    Costs three forward passes over 16 tokens. Left out for a sharded model, and for one on a CPU whose attention kernel
    needs a GPU.

    Raises:
        UserError: they change.
    """
    parameters = list(model.parameters())
    config = model.config.get_text_config()
    attention = config._attn_implementation or "none"
    device = parameters[0].device
    if any(parameter.is_meta or parameter.numel() == 0 or hasattr(parameter, "placements") for parameter in parameters):
        return
    if device.type == "cpu" and "flash" in attention:
        return
    first, other, second, third = np.random.default_rng(0).integers(0, config.vocab_size, (4, LENGTH))
    half = LENGTH // 2
    changed = np.concatenate([third[:half], second[half:]])  # the second document with another beginning
    was_training = model.training
    model.eval()
    try:
        before = _predictions(model, collator, first, second)
        across = (_predictions(model, collator, other, second) - before).abs().max().item()
        within = (_predictions(model, collator, first, changed) - before)[half:].abs().max().item()
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
