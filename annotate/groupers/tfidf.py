"""tfidf: a token is important when it is frequent in its document and rare in the corpus (paper section 3.3)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from annotate.groupers.base import Grouper, GrouperOptions
from annotate.groupers.terms import counts_of, document_frequency, document_terms, load_counts, save_counts
from annotate.tokens.batch import Scores, TokenBatch


class Tfidf(Grouper):
    """tf-idf of token ids, equal to scikit-learn's `TfidfVectorizer` with an identity analyzer to 1e-6.

    A term is a token id, a document all of its `input_ids`. With tf the raw count in the document, N the number of
    documents and df the number of documents that hold the term:

        idf(term) = ln((1 + N) / (1 + df)) + 1,   score = tf · idf / ‖tf · idf‖₂ (norm over the document's terms)

    which are scikit-learn's defaults (smooth idf, Euclidean norm). Computed in float64, stored as float32 in (0, 1].
    A term that the corpus does not hold (new text in the service) has df = 0.
    """

    name = "tfidf"
    needs_fit = True

    def __init__(self) -> None:
        self.document_frequency = np.zeros(0, dtype=np.int64)  # [num_terms], by token id
        self.num_documents = 0

    @classmethod
    def from_options(cls, options: GrouperOptions) -> "Tfidf":
        return cls()

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any], options: GrouperOptions) -> "Tfidf":
        return cls()

    @property
    def parameters(self) -> dict[str, Any]:
        return {}

    def count(self, batch: TokenBatch) -> dict[str, np.ndarray]:
        return {
            "document_frequency": document_frequency(batch),
            "num_documents": np.array([len(batch)]),
        }

    def fit(self, counts: dict[str, np.ndarray]) -> None:
        self.document_frequency = counts["document_frequency"]
        self.num_documents = int(counts["num_documents"][0])

    def save(self, state: Path) -> None:
        save_counts(state / "tfidf.parquet", "document_frequency", self.document_frequency, self.num_documents)

    def load(self, state: Path) -> None:
        self.document_frequency, self.num_documents = load_counts(state / "tfidf.parquet", "document_frequency")

    def score(self, batch: TokenBatch) -> Scores:
        pairs = document_terms(batch)
        frequency = counts_of(self.document_frequency, pairs.terms)
        weights = pairs.counts * (np.log((1 + self.num_documents) / (1 + frequency)) + 1)
        # bincount adds one after the other, so a document's norm does not depend on its neighbours
        norms = np.sqrt(np.bincount(pairs.documents, weights * weights, len(batch)))
        values = (weights / norms[pairs.documents]).astype(np.float32)
        return Scores({self.name: values[pairs.inverse]})
