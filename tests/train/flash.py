"""FlashAttention on a CPU: a stand-in that computes plainly what the kernel does, and refuses what the kernel refuses.

What enters: a name for transformers' `AttentionInterface`. What leaves: a model's attention goes through transformers'
own FlashAttention path (casts, boundaries, unpadding), which ends in these two functions in the place of the package's.

Kept of the real one: float16 or bfloat16 alone, with its words; queries, keys and values as [tokens, heads, head size];
boundaries as int32 tensors that begin at 0, end at the number of tokens and rise; the longest length as an integer.
"""

import torch
from transformers import AttentionInterface, AttentionMaskInterface, modeling_flash_attention_utils
from transformers.integrations.flash_attention import flash_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

NAMES = ("flash_stand_in", "stand_in")  # transformers treats names with "flash" in them in its own ways


def flash_attn_varlen_func(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    deterministic=False,
):
    """Attention of several sequences that lie end to end: [tokens, heads, head size]."""
    if q.dtype not in (torch.float16, torch.bfloat16):
        raise RuntimeError("FlashAttention only support fp16 and bf16 data type")
    assert q.dim() == k.dim() == v.dim() == 3
    for boundaries, rows, longest in ((cu_seqlens_q, q, max_seqlen_q), (cu_seqlens_k, k, max_seqlen_k)):
        if boundaries.dtype != torch.int32:
            raise RuntimeError("cu_seqlens_q must have dtype int32")
        assert isinstance(longest, int)
        assert boundaries[0] == 0
        assert boundaries[-1] == len(rows)
        assert boundaries.diff().max() <= longest
    assert tuple(window_size) == (-1, -1)
    out = torch.empty_like(q)
    repeat = q.shape[1] // k.shape[1]
    for start, end in zip(cu_seqlens_q.tolist(), cu_seqlens_q.tolist()[1:], strict=False):
        parts = [x[start:end].transpose(0, 1)[None].float() for x in (q, k, v)]
        parts[1:] = [x.repeat_interleave(repeat, dim=1) for x in parts[1:]]
        attended = torch.nn.functional.scaled_dot_product_attention(*parts, is_causal=causal, scale=softmax_scale)
        out[start:end] = attended[0].transpose(0, 1).to(q.dtype)
    return out


def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1)):
    """Attention of rows of one length: [rows, tokens, heads, head size]."""
    rows, length = q.shape[:2]
    edges = torch.arange(0, rows * length + 1, length, dtype=torch.int32)
    flat = [x.flatten(0, 1) for x in (q, k, v)]
    return flash_attn_varlen_func(
        *flat, edges, edges, length, length, dropout_p, softmax_scale, causal, window_size
    ).view(q.shape)


def install(monkeypatch, name: str = NAMES[0]) -> str:
    """Register the stand-in and return its name."""
    utilities = modeling_flash_attention_utils
    monkeypatch.setattr(
        utilities,
        "_lazy_imports",
        lambda *_, **__: (flash_attn_func, flash_attn_varlen_func, None, utilities._pad_input, utilities._unpad_input),
    )
    monkeypatch.setattr(utilities, "_loaded_implementation", None)
    AttentionInterface.register(name, flash_attention_forward)
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS["flash_attention_2"])
    return name
