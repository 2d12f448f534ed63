"""LLMLingua-2's and rho1's forward passes: tokens a second through the product's packing, beside a row at a time."""

import time
from typing import Any

import numpy as np


def run(options: Any) -> dict[str, Any]:
    """Return the figures and a check that a window gives what single rows give."""
    import torch
    from transformers import XLMRobertaConfig, XLMRobertaForTokenClassification

    from annotate.models.packing import Packing

    on_gpu = options.device == "cuda"
    shape = (
        {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
        if on_gpu
        else {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    )
    config = XLMRobertaConfig(vocab_size=250002 if on_gpu else 500, max_position_embeddings=514, **shape)
    torch.manual_seed(0)
    dtype = torch.bfloat16 if on_gpu else torch.float32
    net = XLMRobertaForTokenClassification(config).to(options.device, dtype).eval()
    way = Packing(net)
    way.packed = way.packed and on_gpu  # the way of a GPU, on a CPU too
    rng = np.random.default_rng(0)
    lengths = rng.integers(100, 512, 1024) if on_gpu else rng.integers(10, 60, 24)
    starts = np.cumsum(lengths) - lengths
    flat = rng.integers(5, config.vocab_size, int(lengths.sum()))
    budget = 32768 if on_gpu else 256

    def score() -> np.ndarray:
        batches = list(way.batches(starts, lengths, budget))
        laid = [(batch, flat[batch.sources], batch.real) for batch in batches]
        with torch.inference_mode():
            values = torch.cat([net(**inputs).logits[..., 1].float().flatten() for inputs in way.window(laid)]).cpu()
        out = np.empty(len(flat), dtype=np.float32)
        real = np.concatenate([batch.real.ravel() for batch in batches])
        out[np.concatenate([batch.sources.ravel() for batch in batches])[real]] = values.numpy()[real]
        return out

    found = score()  # warm
    began = time.perf_counter()
    score()
    rate = len(flat) / (time.perf_counter() - began)
    apart = 0.0
    with torch.inference_mode():
        for index in range(8):
            part = slice(starts[index], starts[index] + lengths[index])
            ids = torch.from_numpy(flat[part])[None].to(options.device)
            alone = net(input_ids=ids).logits[0, :, 1].float().cpu().numpy()
            apart = max(apart, float(np.abs(alone - found[part]).max()))
    limit = 0.1 if on_gpu else 1e-5
    skipped = ["scoring: the llmlingua package beside it; `python -m tests.benchmarks.llmlingua2` compares both"]
    return {
        "checks": [("a window's scores are those of single rows", apart < limit, f"{apart:.1e} apart")],
        "figures": [("LLMLingua-2's model", f"{rate:,.0f} tokens/s", "aim 500,000 for XLM-R large in bfloat16")],
        "skipped": skipped,
    }
