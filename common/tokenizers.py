"""What makes two tokenizers the same, for shards and models to be matched.

No tokenizer is loaded here: the functions take a loaded `transformers` fast tokenizer.
"""

import hashlib
import json
from typing import Any

from common.errors import UserError


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

    Enters: every token with its id, which added tokens are special, and the ids of BOS, EOS and UNK. The padding token
    stays out on purpose: padded positions never reach a shard, and many training scripts set it to EOS.
    """
    pad = tokenizer.pad_token_id
    identity = {
        "special": sorted(
            (index, token.content)
            for index, token in tokenizer.added_tokens_decoder.items()
            if token.special and index != pad
        ),
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "unk": tokenizer.unk_token_id,
    }
    # PAD may be one of the others (a common setting), so the three ids above are kept even when they equal it.
    digest = hashlib.sha256(json.dumps(identity, ensure_ascii=True).encode())
    vocabulary = tokenizer.get_vocab()
    names = sorted(vocabulary, key=vocabulary.__getitem__)  # ids are distinct; one pass, for 128,256 entries add up
    ids = [vocabulary[name] for name in names]
    if pad in ids:
        del names[ids.index(pad)], ids[ids.index(pad)]
    digest.update(json.dumps([ids, names]).encode())
    return digest.hexdigest()
