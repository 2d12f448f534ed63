"""Chunks: documents cut into pieces that a compressor sees at once.

What enters: texts. What leaves: the compressor's tokens of every chunk, flat, with their characters and their places in
words; `annotate.groupers.llmlingua2.model` scores them. Loops here run over documents or chunks, never over tokens.
"""

from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from annotate.groupers.llmlingua2.rule import WordRule

CHUNK_TOKENS = 510  # 512 positions less the two special tokens


@dataclass(frozen=True)
class Tokens:
    """The compressor's tokens of texts, flat; token k of text i stands at `offsets[i] + k`."""

    ids: np.ndarray  # int64 [num_tokens]
    spans: np.ndarray  # int64 [num_tokens, 2]: characters [start, end) in the text; a lone "▁" has none
    offsets: np.ndarray  # int64 [num_texts + 1]


@dataclass(frozen=True)
class Chunks:
    """The tokens of all chunks, flat and without special tokens around them; token k of chunk c at `offsets[c] + k`."""

    ids: np.ndarray  # int64 [num_tokens]
    spans: np.ndarray  # int64 [num_tokens, 2]: characters [start, end) in the chunk's document
    begins: np.ndarray  # bool [num_tokens]: begins a word; so does the first counted token of every chunk
    counted: np.ndarray  # bool [num_tokens]: belongs to a word
    attended: np.ndarray  # bool [num_tokens]: other tokens see it
    offsets: np.ndarray  # int64 [num_chunks + 1]
    documents: np.ndarray  # int64 [num_chunks], increasing
    closed: np.ndarray  # bool [num_chunks]: a special token follows the chunk (one precedes it always)
    num_documents: int


def tokenize(backend: Any, texts: list[str], marker: int | None) -> tuple[Tokens, list[Any]]:
    """Tokenize texts without adding special tokens; also return the tokenizer's own encodings.

    Args:
        backend: a `tokenizers.Tokenizer`.
        marker: id of the lone "▁" that SentencePiece puts before a word. It has no character of its own: the tokenizer
            reports the word's first one, which the next token reports too, so its span is made empty.
    """
    encodings = backend.encode_batch(texts, add_special_tokens=False)
    lengths = np.fromiter(map(len, encodings), np.int64, len(encodings))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    num_tokens = int(offsets[-1])
    ids = np.fromiter(chain.from_iterable(encoding.ids for encoding in encodings), np.int64, num_tokens)
    pairs = chain.from_iterable(chain.from_iterable(encoding.offsets for encoding in encodings))
    spans = np.fromiter(pairs, np.int64, 2 * num_tokens).reshape(-1, 2)
    if marker is not None:
        lone = np.flatnonzero(ids[:-1] == marker)
        lone = lone[spans[lone, 0] == spans[lone + 1, 0]]
        spans[lone, 1] = spans[lone, 0]
    return Tokens(ids, spans, offsets), encodings


def cut(tokens: Tokens, rule: WordRule, package_parity: bool) -> tuple[np.ndarray, np.ndarray]:
    """Cut every text into chunks.

    A chunk ends after the last "." or newline token of its window; the window's first token is not looked at, as in the
    package. Where there is none, it ends before the last token that begins a word, and where a single word fills the
    window, at the window's end. The rest of a text that fits makes the last chunk. The window has 510 tokens. With
    `package_parity` it has 511 and word boundaries are not looked for, as in `llmlingua` 0.2.2.

    Returns:
        starts: int64 [num_chunks], places in the flat arrays; a chunk reaches to the next start or its text's end.
        documents: int64 [num_chunks].
    """
    lengths = np.diff(tokens.offsets)
    long = lengths > CHUNK_TOKENS
    window = CHUNK_TOKENS + package_parity
    starts = [tokens.offsets[:-1][lengths > 0]]
    if long.any():
        ends = np.flatnonzero(rule.ends_chunk[tokens.ids])
        begins = np.flatnonzero(rule.begins[tokens.ids])

        def last(places: np.ndarray, above: int, upto: int) -> int | None:
            """Return the last of these places in (above, upto]."""
            found = np.searchsorted(places, upto, side="right") - 1
            return int(places[found]) if found >= 0 and places[found] > above else None

        for document in np.flatnonzero(long):
            start, stop = int(tokens.offsets[document]), int(tokens.offsets[document + 1])
            while stop - start > CHUNK_TOKENS:
                end = last(ends, start, start + window - 1)
                if end is not None:
                    following = end + 1
                else:
                    boundary = None if package_parity else last(begins, start, start + window)
                    following = start + window if boundary is None else boundary
                # A period at the very end leaves nothing for another chunk.
                if following >= stop:
                    break
                starts.append(np.array([following]))
                start = following
    all_starts = np.sort(np.concatenate(starts))
    return all_starts, np.searchsorted(tokens.offsets, all_starts, side="right") - 1


def first_counted(counted: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return the place of the first counted token of every chunk that has one."""
    places = np.flatnonzero(counted)
    found = np.searchsorted(places, offsets[:-1])
    inside = found < places.size
    inside[inside] = places[found[inside]] < offsets[1:][inside]
    return places[found[inside]]


def make_chunks(tokens: Tokens, rule: WordRule) -> Chunks:
    """Cut texts into chunks of at most 510 tokens; every token stands in exactly one chunk and counts in a word."""
    starts, documents = cut(tokens, rule, package_parity=False)
    offsets = np.append(starts, len(tokens.ids))
    counted = np.ones(len(tokens.ids), dtype=bool)
    begins = rule.begins[tokens.ids]
    begins[first_counted(counted, offsets)] = True
    closed = np.ones(len(starts), dtype=bool)
    num_documents = len(tokens.offsets) - 1
    return Chunks(tokens.ids, tokens.spans, begins, counted, counted, offsets, documents, closed, num_documents)
