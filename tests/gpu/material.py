"""What every part trains on: made here, from seeds, so that nothing has to be carried to the machine.

What enters: a device and sizes. What leaves: rows as `train.data.loading` gives them, a tokenizer, models with random
weights, and trainers of the product.
"""

import tempfile
from typing import Any

import numpy as np


def rows(num_documents: int, longest: int, vocabulary: int, kind: str = "go", seed: int = 0) -> Any:
    """Return documents of uneven lengths (like LIMA's, most are far shorter than the longest) with groups."""
    from datasets import Dataset

    rng = np.random.default_rng(seed)
    lengths = np.clip((rng.lognormal(-1.3, 0.8, num_documents) * longest).astype(int), 8, longest)
    columns: dict[str, list] = {"input_ids": [], "supervised": []}
    extra = "reference_loss" if kind == "rho1" else "group"
    columns[extra] = []
    for length in lengths.tolist():
        prompt = max(1, length // 5)
        columns["input_ids"].append(rng.integers(2, vocabulary, length).tolist())
        columns["supervised"].append([False] * prompt + [True] * (length - prompt))
        values = rng.random(length).astype(np.float32) * 12
        columns[extra].append(values.tolist() if kind == "rho1" else (values > 8).astype(np.int8).tolist())
    return Dataset.from_dict(columns).with_format("numpy")


def packed(data: Any, length: int) -> Any:
    """Return the rows packed as `train run --packing true` packs them."""
    from trl import pack_dataset

    return pack_dataset(data, length, "bfd")


def model(
    size: str, vocabulary: int, device: str, attention: str = "sdpa", dtype: str = "float32", seed: int = 0
) -> Any:
    """Return a Llama with random weights, of a size of `tests.benchmarks.train`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.benchmarks.train import SIZES

    hidden, intermediate, layers, heads, kv_heads = SIZES[size] or (64, 192, 2, 4, 2)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=128 if hidden >= 3072 else hidden // heads,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        rope_theta=500000.0,
        bos_token_id=0,
        eos_token_id=1,
    )
    config._attn_implementation = attention
    torch.manual_seed(seed)
    with torch.device(device):
        return LlamaForCausalLM(config).to(getattr(torch, dtype))


def trainer(net: Any, data: Any, device: str, lengths: bool = False, **settings: Any) -> Any:
    """Return the product's trainer; with `lengths`, attention is told lengths where the model agrees."""
    from transformers import PrinterCallback, ProgressCallback

    from tests.train.conftest import build_tokenizer
    from tests.train.runs import trainer_over
    from train.loop.attention import use_lengths
    from train.settings.config import GOConfig

    args = GOConfig(
        **{
            "output_dir": tempfile.mkdtemp(prefix="sft-go-gpu-"),
            "use_cpu": device == "cpu",
            "bf16": device == "cuda",
            "save_strategy": "no",
            "gradient_checkpointing": False,
            "dataloader_pin_memory": device == "cuda",
            "train_sampling_strategy": "sequential",
            **settings,
        }
    )
    made = trainer_over(data, net, args, build_tokenizer())
    made.remove_callback(PrinterCallback)
    made.remove_callback(ProgressCallback)
    if lengths:
        assert use_lengths(made.model, False, made.accelerator.autocast), "the model keeps its own attention"
    return made
