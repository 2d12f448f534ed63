"""Attention over documents that lie end to end, told their lengths: no mask, no padding, no wait.

What enters: queries, keys and values of one row, and the documents' boundaries, which TRL's padding-free collator makes
on the host. What leaves: each document's attention, as if it were alone. Next: `layout.py` decides where it is used.

On a GPU in half precision it is torch's own variable-length kernel (FlashAttention, in torch since 2.10: no package
needs to be compiled). Elsewhere it is transformers' `sdpa`, called for each document. transformers' own way with `sdpa`
is one mask over the whole row, [tokens, tokens], and the row's square in work.
"""

import functools
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

ATTENTION = "sft_go_lengths"
HALF = (torch.float16, torch.bfloat16)
KNOWN_LAYERS = {"full_attention", "sliding_attention"}
UNKNOWN_OPTIONS = ("softcap", "s_aux", "position_bias")  # what only some kernels can do


def register() -> None:
    """Make the attention known to transformers, by name.

    It is left out of its mask functions on purpose: a model then builds no mask, and looks for no document boundaries,
    for which transformers would wait for the device once a pass.
    """
    AttentionInterface.register(ATTENTION, attend)


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within each document, causally.

    The same, document by document d with tokens [a, b), as

        softmax(query[a:b] · key[a:b]ᵀ · scaling + causal mask) · value[a:b]

    Args:
        module: the attention layer.
        query: [1, heads, tokens, head size]; key and value likewise, with as many or fewer heads.
        attention_mask: not used with boundaries.
        scaling: of the scores.
        dropout: of the weights; on the kernel it must be 0.
        sliding_window: tokens that a token sees, itself included; None for all before it.
        cu_seq_lens_q: int32 [documents + 1], where documents begin and end. None: rows of one document each.
        max_length_q: the longest document, a plain integer.
        options: as transformers gives them.

    Returns:
        [1, tokens, heads, head size], and no weights.

    Raises:
        ValueError: the layer asks for something that this attention does not do.
    """
    asked = [name for name in UNKNOWN_OPTIONS if options.get(name) is not None]
    if asked or options.get("is_causal") is False:
        raise ValueError(f"{ATTENTION} does not do {', '.join(asked) or 'attention to later tokens'}")
    if cu_seq_lens_q is None:
        if sliding_window is not None and query.shape[2] > sliding_window:
            raise ValueError(f"{ATTENTION} needs the documents' boundaries for a sliding window")
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling)
    if query.device.type == "cuda":
        return _on_gpu(query, key, value, cu_seq_lens_q, max_length_q, scaling, dropout, sliding_window), None
    edges = cu_seq_lens_q.tolist()
    outputs = []
    for start, end in pairwise(edges):
        parts = [states[:, :, start:end] for states in (query, key, value)]
        mask = _band(end - start, sliding_window, query.device)
        outputs.append(sdpa_attention_forward(module, *parts, mask, dropout=dropout, scaling=scaling)[0])
    return torch.cat(outputs, dim=1), None


def _band(length: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """Return which tokens see which, bool [1, 1, length, length]; None where plain causality says it."""
    if window is None or length <= window:
        return None
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    return ((distance >= 0) & (distance < window))[None, None]


def _on_gpu(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    edges: torch.Tensor,
    longest: int | None,
    scaling: float | None,
    dropout: float,
    window: int | None,
) -> torch.Tensor:
    if dropout:
        raise ValueError(f"{ATTENTION} has no dropout of attention weights on a GPU")
    if query.dtype == torch.float32 and torch.is_autocast_enabled(query.device.type):
        # Norms of queries and keys may have made them float32; the kernel takes half precision alone.
        half = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(half), key.to(half), value.to(half)
    flat = [states.squeeze(0).transpose(0, 1) for states in (query, key, value)]  # [tokens, heads, head size]
    edges = edges.to(query.device, torch.int32)
    return variable_length(*flat, edges, int(longest), scaling, window)[None]


def variable_length(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    edges: torch.Tensor,
    longest: int,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """Call torch's kernel, whose arguments have changed from release to release (2.11 to 2.13 are known)."""
    kernel, takes = _kernel()
    options: dict[str, Any] = {}
    if "window_size" in takes:
        options["window_size"] = (-1 if window is None else window - 1, 0)
    elif window is None:
        options["is_causal"] = True
    else:
        raise ValueError(f"{ATTENTION}: this release of torch has no sliding window")
    if "scale" in takes:
        options["scale"] = scaling
    elif scaling is not None:
        query = query * (scaling * query.shape[-1] ** 0.5)
    if query.shape[1] != key.shape[1]:
        if "enable_gqa" in takes:
            options["enable_gqa"] = True
        else:
            repeat = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(repeat, dim=1), value.repeat_interleave(repeat, dim=1)
    return kernel(query, key, value, edges, edges, longest, longest, **options)


@functools.cache
def _kernel() -> tuple[Any, frozenset[str]]:
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn, frozenset(inspect.signature(varlen_attn).parameters)


def use_lengths(
    model: Any, is_sharded: bool = False, autocast: Callable[[], AbstractContextManager] = nullcontext
) -> bool:
    """Give a model this attention if it then says the same as with its own, and return whether it has it.

    Tried out on random tokens of two documents, on the model's device and in the step's precision: architectures differ
    in what they make of positions, masks and options. A model that `is_sharded` may have no weights here yet, so it is
    not tried out: its layers' kinds have decided (`layout.py`), as every rank must come to the same answer.
    """
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    parameters = list(model.parameters())
    register()
    if is_sharded:
        model.set_attn_implementation(ATTENTION)
        return True
    before = model.config.get_text_config()._attn_implementation
    was_training = model.training
    model.eval()
    same = False
    try:
        with torch.no_grad(), autocast():
            same = _says_the_same(model, parameters[0].device)
    except (TypeError, ValueError, RuntimeError, IndexError, KeyError):
        pass  # such as an option that the attention does not know
    finally:
        if not same:
            model.set_attn_implementation(before)
        model.train(was_training)
    return same


def _says_the_same(model: Any, device: torch.device) -> bool:
    config = model.config.get_text_config()
    lengths = [5, min(getattr(config, "sliding_window", None) or 12, 64) + 8]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, config.vocab_size, (1, sum(lengths)), generator=generator).to(device)
    positions = torch.cat([torch.arange(length) for length in lengths])[None].to(device)
    edges = torch.tensor([0, lengths[0], sum(lengths)], dtype=torch.int32, device=device)
    told = {"cu_seq_lens_q": edges, "cu_seq_lens_k": edges, "max_length_q": max(lengths), "max_length_k": max(lengths)}
    alone = [model(input_ids=part, use_cache=False).logits for part in ids.split(lengths, dim=1)]
    expected = torch.cat(alone, dim=1)
    model.set_attn_implementation(ATTENTION)
    found = model(input_ids=ids, position_ids=positions, use_cache=False, **told).logits
    exact = expected.dtype == torch.float32 and not torch.is_autocast_enabled(device.type)
    largest = float(expected.abs().max())
    return torch.allclose(found.float(), expected.float(), atol=(1e-4 if exact else 5e-2) * largest, rtol=0)
