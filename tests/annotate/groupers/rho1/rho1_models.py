"""Tiny checkpoints with random weights, hand-made batches, and the slow reference for the rho1 tests."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MambaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from annotate.tokens.batch import TokenBatch

VOCABULARY = 97
TINY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    # Larger than the usual 0.02, so that a wrong mask, scale or neighbour moves losses by far more than rounding does.
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
CONFIGS = {
    "llama": (LlamaConfig, {}),
    "qwen2": (Qwen2Config, {}),
    "gemma2": (Gemma2Config, {"final_logit_softcapping": 3.0, "sliding_window": 8}),
    "cohere": (CohereConfig, {"logit_scale": 0.3}),
    "granite": (GraniteConfig, {"logits_scaling": 2.5}),
    "gpt2": (GPT2Config, {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "mamba": (MambaConfig, {"state_size": 4}),
}


def make_model(kind: str, seed: int = 0, vocabulary: int = VOCABULARY, **settings) -> torch.nn.Module:
    """Return a random-weight causal language model in float32."""
    config_class, own = CONFIGS[kind]
    shared = {} if kind == "gpt2" else TINY
    torch.manual_seed(seed)
    config = config_class(**{**shared, **own, "vocab_size": vocabulary, "initializer_range": 0.2, **settings})
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def make_tokenizer(vocabulary: int = VOCABULARY, first: str = "w") -> PreTrainedTokenizerFast:
    """Return a word-level fast tokenizer with `vocabulary` entries."""
    backend = Tokenizer(models.WordLevel({f"{first}{i}": i for i in range(vocabulary)}, unk_token=f"{first}0"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    unknown, end = f"{first}0", f"{first}{vocabulary - 1}"
    # PAD is set, since Qwen2's tokenizer class would else add a token of its own for it.
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token=unknown, pad_token=unknown, eos_token=end)


def save_checkpoint(directory: Path, kind: str = "llama", seed: int = 0, tokenizer=None, **settings) -> str:
    """Save a random-weight checkpoint with a tokenizer and return its path."""
    make_model(kind, seed, **settings).save_pretrained(directory)
    (make_tokenizer() if tokenizer is None else tokenizer).save_pretrained(directory)
    return str(directory)


def make_batch(documents: list[list[int]], supervised: list[list[bool]] | None = None) -> TokenBatch:
    """Return a batch of documents given as lists of token ids; everything is supervised by default."""
    lengths = [len(ids) for ids in documents]
    flags = [[True] * length for length in lengths] if supervised is None else supervised
    return TokenBatch(
        document_ids=[f"doc-{i}" for i in range(len(documents))],
        source_rows=np.arange(len(documents)),
        texts=[" ".join(f"w{i}" for i in ids) for ids in documents],
        input_ids=np.array([i for ids in documents for i in ids], dtype=np.int32),
        supervised=np.array([f for row in flags for f in row], dtype=bool),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    )


def random_documents(count: int, seed: int = 0, longest: int = 40, vocabulary: int = VOCABULARY) -> list[list[int]]:
    """Return documents of 1 to `longest` random token ids."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocabulary, rng.integers(1, longest + 1)).tolist() for _ in range(count)]


def slow_losses(model: torch.nn.Module, documents: list[list[int]]) -> np.ndarray:
    """The independent reference: one document at a time, no padding, full float32 logits, `F.cross_entropy`."""
    values = []
    with torch.no_grad():
        for document in documents:
            ids = torch.tensor([document])
            logits = model(input_ids=ids, use_cache=False).logits.float()
            losses = F.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="none")
            values.append(torch.cat([torch.zeros(1), losses]))
    return torch.cat(values).numpy()
