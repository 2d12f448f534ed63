"""From tokens to words: the mean of their probabilities.

What enters: chunks of a compressor's tokens with a probability each. What leaves: words with a probability and a
character span each, which `annotate.groupers.llmlingua2.alignment` carries over to the target tokens.
"""

from dataclasses import dataclass

import numpy as np

from annotate.groupers.llmlingua2.chunks import Chunks


@dataclass(frozen=True)
class Words:
    """The words of documents, in order."""

    probabilities: np.ndarray  # float64 [num_words], in [0, 1]; NaN where the model gave none
    spans: np.ndarray  # int64 [num_words, 2]: characters [start, end) in the document; a lone "▁" has none
    documents: np.ndarray  # int64 [num_words]
    num_chunks: np.ndarray  # int64 [num_documents]: 0 for a document without tokens

    @classmethod
    def concatenate(cls, parts: "list[Words]") -> "Words":
        """Join the words of consecutive runs of documents."""
        first = np.cumsum([0, *(len(part.num_chunks) for part in parts)])
        none = np.zeros(0, np.int64)
        return cls(
            np.concatenate([np.zeros(0), *(part.probabilities for part in parts)]),
            np.concatenate([np.zeros((0, 2), np.int64), *(part.spans for part in parts)]),
            np.concatenate([none, *(part.documents + start for part, start in zip(parts, first[:-1], strict=True))]),
            np.concatenate([none, *(part.num_chunks for part in parts)]),
        )


def merge_words(chunks: Chunks, probabilities: np.ndarray) -> Words:
    """Merge tokens to words: the mean of their probabilities, from the first one's start to the last one's end.

    Args:
        chunks: the tokens.
        probabilities: float32 [num_tokens] of `chunks`.
    """
    num_chunks = np.bincount(chunks.documents, minlength=chunks.num_documents)
    counted = np.flatnonzero(chunks.counted)
    if counted.size == 0:
        return Words(np.zeros(0), np.zeros((0, 2), np.int64), np.zeros(0, np.int64), num_chunks)
    heads = np.flatnonzero(chunks.begins[counted])  # the first counted token of a chunk always begins a word
    sizes = np.diff(np.append(heads, counted.size))
    means = np.add.reduceat(probabilities[counted].astype(np.float64), heads) / sizes
    starts, ends = chunks.spans[counted].T
    far = np.iinfo(np.int64).max
    empty = ends <= starts
    word_starts = np.minimum.reduceat(np.where(empty, far, starts), heads)
    word_ends = np.maximum.reduceat(np.where(empty, -1, ends), heads)
    blank = word_ends < 0
    word_starts[blank] = word_ends[blank] = starts[heads[blank]]
    owners = np.repeat(chunks.documents, np.diff(chunks.offsets))
    return Words(means, np.stack([word_starts, word_ends], axis=1), owners[counted[heads]], num_chunks)
