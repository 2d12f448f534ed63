"""What makes two tokenizers the same, for shards and models to be matched.

No tokenizer is loaded here: the functions take a loaded `transformers` fast tokenizer.
"""

import hashlib
import json
from typing import Any

import numpy as np

from common.errors import UserError

PADDING_NAMES = ("[PAD]", "<pad>", "<PAD>", "<|pad|>", "<|padding|>")


def require_fast(tokenizer: Any, name: str) -> None:
    """Raise a `UserError` unless the tokenizer is a fast one (character offsets are needed)."""
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            f"tokenizer {name!r}: expected a fast tokenizer (one with a tokenizer.json, from the tokenizers library), "
            f"found the slow {type(tokenizer).__name__}. Character offsets are needed to align scores. "
            "Convert it with AutoTokenizer.from_pretrained(name).save_pretrained(dir), or take a checkpoint "
            "that ships tokenizer.json."
        )


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Return a SHA-256 (hexadecimal) of the vocabulary with its ids and of the special tokens.

    Enters: every token with its id, which added tokens are special, and the ids of BOS, EOS and UNK. Which token pads
    stays out on purpose, and so does a token that exists for padding only (`PADDING_NAMES`): padded positions never
    reach a shard, many training scripts set PAD to EOS, and others add a new one.
    """
    vocabulary = tokenizer.get_vocab()
    ends = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "unk": tokenizer.unk_token_id}
    padding = {vocabulary[name] for name in PADDING_NAMES if name in vocabulary} - set(ends.values())
    added = tokenizer.added_tokens_decoder.items()
    special = sorted((index, token.content) for index, token in added if token.special and index not in padding)
    digest = hashlib.sha256(json.dumps({"special": special, **ends}, ensure_ascii=True).encode())
    # Ids are distinct. Few passes, in numpy: 128,256 entries add up.
    ids = np.fromiter(vocabulary.values(), np.int64, len(vocabulary))
    order = np.argsort(ids)
    order = order[~np.isin(ids[order], sorted(padding))]
    names = np.array(list(vocabulary), dtype=object)[order]
    digest.update(json.dumps([ids[order].tolist(), names.tolist()]).encode())
    return digest.hexdigest()
