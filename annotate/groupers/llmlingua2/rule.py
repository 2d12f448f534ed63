"""Where words begin and chunks may end, read off a compressor's tokenizer.

What enters: a fast tokenizer. What leaves: tables over its token ids, which `chunks.py` looks up.
"""

import json
import string
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.errors import UserError


@dataclass(frozen=True)
class WordRule:
    """The `llmlingua` package's rule for where a word begins, as tables over token ids.

    The package picks the rule by the model's path; here it comes from the tokenizer itself, so a renamed copy works:
    WordPiece begins a word at every token without the continuation prefix ("##"); SentencePiece at every token with the
    marker ("▁"), and at every token that is a piece of `string.punctuation` as it stands.
    """

    begins: np.ndarray  # bool [vocabulary]: the token begins a word
    special: np.ndarray  # bool [vocabulary]: a special token of the tokenizer, such as [SEP] or <unk>
    ends_chunk: np.ndarray  # bool [vocabulary]: "." or a newline; neither family's tokenizer ever makes a newline token
    marker: int | None  # id of a lone "▁"

    @classmethod
    def of(cls, tokenizer: Any, name: str) -> "WordRule":
        """Read the rule off a fast tokenizer; `name` is the checkpoint's, for the error.

        Raises:
            UserError: it is neither WordPiece nor SentencePiece.
        """
        backend = tokenizer.backend_tokenizer
        kind = type(backend.model).__name__
        vocabulary = backend.get_vocab(with_added_tokens=True)
        tokens = [""] * (max(vocabulary.values()) + 1)  # by id; ids need not be dense
        for token, index in vocabulary.items():
            tokens[index] = token
        marker = None
        if kind == "WordPiece":
            prefix = backend.model.continuing_subword_prefix
            begins = [not token.startswith(prefix) for token in tokens]
        elif symbol := _metaspace(backend.pre_tokenizer):
            begins = [token.startswith(symbol) or token in string.punctuation for token in tokens]
            marker = backend.token_to_id(symbol)
        else:
            raise UserError(
                f"--compressor-model {name}: expected a WordPiece tokenizer (as of BERT) or a SentencePiece one (as of "
                f"XLM-RoBERTa), found {kind} of {type(tokenizer).__name__}. Words cannot be told apart; give an "
                "LLMLingua-2 checkpoint."
            )
        special = np.zeros(len(tokens), dtype=bool)
        named = [token for token in tokenizer.special_tokens_map.values() if not isinstance(token, list)]
        special[tokenizer.convert_tokens_to_ids(list(map(str, named)))] = True
        ends_chunk = np.array([token in (".", "\n") for token in tokens])
        return cls(np.array(begins), special, ends_chunk, marker)


def _metaspace(pre_tokenizer: Any) -> str | None:
    """Return the symbol that a SentencePiece pre-tokenizer puts before words ("▁"); None for any other one."""
    if pre_tokenizer is None:
        return None
    state = json.loads(pre_tokenizer.__getstate__())
    steps = state.get("pretokenizers", [state])
    return next((step["replacement"] for step in steps if step["type"] == "Metaspace"), None)
