"""From the words of one model to the tokens of another, by characters (DESIGN: section 4).

What enters: words with a value each (`model.py` beside this file) and target tokens, both as character spans in the
same texts. What leaves: one score per target token. Everything is flat over a whole shard; a document's result is
computed from that document's numbers alone, so it is the same to the last bit whatever its neighbours are.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np


class Aligned(NamedTuple):
    """What `align` returns."""

    scores: np.ndarray  # float32 [num_tokens]
    covered: np.ndarray  # bool [num_tokens]: at least one word overlaps the token


@lru_cache(maxsize=1)
def _space_table() -> np.ndarray:
    """bool: `str.isspace` of every code point up to the last white space there is, then one False for all others."""
    return np.array([chr(code).isspace() for code in range(0x3001)] + [False])


def _solid_characters(texts: list[str]) -> np.ndarray:
    """Return bool [num_characters] over the joined texts: the character is not white space."""
    table = _space_table()
    codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), dtype="<u4")
    return ~table[np.minimum(codes, len(table) - 1)]


def shrink(starts: np.ndarray, ends: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cut each interval [start, end) at both sides until it begins and ends with a kept position.

    Args:
        starts, ends: int64 [n], 0 <= start <= end <= len(keep).
        keep: bool [num_positions].

    Returns:
        starts, ends: int64 [n]; an interval without a kept position becomes [start, start).
    """
    kept = np.flatnonzero(keep)
    before = np.concatenate([[0], np.cumsum(keep)])  # kept positions left of each position
    first, stop = before[starts], before[ends]
    filled = stop > first
    new_starts, new_ends = starts.copy(), starts.copy()
    new_starts[filled] = kept[first[filled]]
    new_ends[filled] = kept[stop[filled] - 1] + 1
    return new_starts, new_ends


def align(
    texts: list[str],
    spans: np.ndarray,
    documents: np.ndarray,
    word_spans: np.ndarray,
    word_documents: np.ndarray,
    word_values: np.ndarray,
) -> Aligned:
    """Give each target token the mean of the words that its characters overlap, weighted by overlapping characters.

    score(token) = sum_w value_w * |token ∩ w| / sum_w |token ∩ w|, in float64, with |·| in characters. White space at
    either end of a token or a word does not count. A character that several words share (one character that the other
    tokenizer split, such as "½") counts for each of them. No overlap at all: score 0, and `covered` is False.

    Args:
        texts: the documents' texts.
        spans: int [num_tokens, 2], each target token's characters [start, end) in its document; empty for specials.
        documents: int64 [num_tokens], the token's document.
        word_spans: int [num_words, 2], the same for words, in any order.
        word_documents: int64 [num_words].
        word_values: float [num_words].
    """
    lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    base = np.concatenate([[0], np.cumsum(lengths)])
    solid = _solid_characters(texts)

    def place(pairs: np.ndarray, owners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        placed = pairs.astype(np.int64) + base[owners][:, None]
        assert pairs.size == 0 or (pairs.min() >= 0 and (placed[:, 1] <= base[owners + 1]).all()), "span outside text"
        return shrink(placed[:, 0], placed[:, 1], solid)

    starts, ends = place(spans, documents)
    word_starts, word_ends = place(word_spans, word_documents)

    filled = np.flatnonzero(word_ends > word_starts)
    order = filled[np.argsort(word_starts[filled], kind="stable")]
    word_starts, word_ends, values = word_starts[order], word_ends[order], word_values[order].astype(np.float64)

    # The words that can overlap a token stand in one run [first, last): those before end too early (the running
    # maximum keeps that true for nested words), those after begin too late.
    first = np.searchsorted(np.maximum.accumulate(word_ends), starts, side="right")
    last = np.searchsorted(word_starts, ends, side="left")
    num_pairs = np.where(ends > starts, np.maximum(last - first, 0), 0)
    token = np.repeat(np.arange(len(starts)), num_pairs)
    word = np.arange(len(token)) - np.repeat(np.cumsum(num_pairs) - num_pairs - first, num_pairs)
    overlap = np.minimum(word_ends[word], ends[token]) - np.maximum(word_starts[word], starts[token])
    meet = overlap > 0  # a word nested in another one of the run may miss the token
    token, word, overlap = token[meet], word[meet], overlap[meet]

    weight = np.bincount(token, weights=overlap, minlength=len(starts))
    total = np.bincount(token, weights=overlap * values[word], minlength=len(starts))
    covered = weight > 0
    scores = np.divide(total, weight, out=np.zeros(len(starts)), where=covered)
    return Aligned(scores.astype(np.float32), covered)
