"""frequency: rarer tokens are more important (paper section 3.3)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from annotate.groupers.base import Grouper, GrouperOptions
from annotate.groupers.terms import counts_of, load_counts, save_counts
from annotate.tokens.batch import Scores, TokenBatch


class Frequency(Grouper):
    """−ln(count(token) / total) over the corpus, in nats, in [0, ln(total)], as float32.

    A token that the corpus does not hold (new text in the service) counts as one that it holds once.
    """

    name = "frequency"
    needs_fit = True

    def __init__(self) -> None:
        self.counts = np.zeros(0, dtype=np.int64)  # [num_terms], by token id
        self.total = 0

    @classmethod
    def from_options(cls, options: GrouperOptions) -> "Frequency":
        return cls()

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any], options: GrouperOptions) -> "Frequency":
        return cls()

    @property
    def parameters(self) -> dict[str, Any]:
        return {}

    def count(self, batch: TokenBatch) -> dict[str, np.ndarray]:
        return {"count": np.bincount(batch.input_ids), "total": np.array([batch.num_tokens])}

    def fit(self, counts: dict[str, np.ndarray]) -> None:
        self.counts, self.total = counts["count"], int(counts["total"][0])

    def save(self, state: Path) -> None:
        save_counts(state / "frequency.parquet", "count", self.counts, self.total)

    def load(self, state: Path) -> None:
        self.counts, self.total = load_counts(state / "frequency.parquet", "count")

    def score(self, batch: TokenBatch) -> Scores:
        counts = np.maximum(counts_of(self.counts, batch.input_ids.astype(np.int64)), 1)
        # + 0.0 turns the −0.0 of a corpus with a single token into 0.0
        return Scores({self.name: (-np.log(counts / max(1, self.total)) + 0.0).astype(np.float32)})
