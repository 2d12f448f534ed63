"""The one record type that flows through annotation: the tokenized documents of one shard, as flat arrays.

What enters: documents that were tokenized (`target.py`). What leaves: what every grouper scores. Ragged lists are
kept flat with document offsets, so that groupers work on whole shards with numpy and never loop over tokens.
"""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class TokenBatch:
    """Documents as flat arrays; token k of document i stands at `offsets[i] + k`."""

    document_ids: list[str]
    source_rows: np.ndarray  # int64 [num_documents]: row in the source
    texts: list[str]  # the documents' texts, without the target tokenizer's special tokens
    input_ids: np.ndarray  # int32 [num_tokens]
    supervised: np.ndarray  # bool [num_tokens]
    offsets: np.ndarray  # int64 [num_documents + 1]
    # int32 [num_tokens, 2]: each token's characters [start, end) in its document's text; empty for special tokens.
    # None when no grouper of the run asked for spans.
    spans: np.ndarray | None = None

    def __len__(self) -> int:
        """Return the number of documents."""
        return len(self.offsets) - 1

    @property
    def num_tokens(self) -> int:
        """Tokens over all documents."""
        return int(self.offsets[-1])

    @property
    def lengths(self) -> np.ndarray:
        """int64 [num_documents]: tokens of each document."""
        return np.diff(self.offsets)

    @property
    def document_index(self) -> np.ndarray:
        """int64 [num_tokens]: the document that each token belongs to."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def tokens_of(self, document: int) -> slice:
        """Return the slice of the flat arrays that holds one document."""
        return slice(int(self.offsets[document]), int(self.offsets[document + 1]))

    def select(self, keep: np.ndarray) -> "TokenBatch":
        """Return the documents at these indices (int64, increasing), everything else left out."""
        wanted = np.zeros(len(self), dtype=bool)
        wanted[keep] = True
        tokens = np.repeat(wanted, self.lengths)
        return TokenBatch(
            document_ids=[self.document_ids[i] for i in keep],
            source_rows=self.source_rows[keep],
            texts=[self.texts[i] for i in keep],
            input_ids=self.input_ids[tokens],
            supervised=self.supervised[tokens],
            offsets=np.concatenate([[0], np.cumsum(self.lengths[keep])]).astype(np.int64),
            spans=None if self.spans is None else self.spans[tokens],
        )


@dataclass
class Scores:
    """What a grouper says of one `TokenBatch`."""

    columns: dict[str, np.ndarray]  # column name -> float32 [num_tokens], finite for every document not in `rejects`
    rejects: dict[int, str] = field(default_factory=dict)  # document index -> a sentence that says why it has no score
    counters: dict[str, float] = field(default_factory=dict)  # summed over shards, then given to `Grouper.report`
    # int64 [num_documents]: pieces that the model saw each text in; None when it sees documents whole.
    num_chunks: np.ndarray | None = None
