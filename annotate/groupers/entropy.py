"""entropy: how open each token's place is, by the predictive entropy of a frozen reference model.

What enters: tokenized documents. What leaves: the column `entropy`, an importance: where a model could go on in many
ways ("forking tokens"), the training has most to decide.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from annotate.groupers.reference import ReferenceGrouper
from annotate.tokens.batch import Scores, TokenBatch


class Entropy(ReferenceGrouper):
    """H_j = −Σ_v p(v | w_1 … w_{j−1}) · ln p(v | w_1 … w_{j−1}), in nats, in [0, ln(vocabulary)], as float32.

    The measure of "Beyond the 80/20 Rule" (Wang et al., 2025, at temperature 1), which takes it from the policy that is
    being trained; here the model is frozen, so that the scores can be written once. The entropy is of the distribution
    that token j is drawn from: it does not depend on token j. It is defined for every token, supervised or not; the
    first of a document, which no token precedes, gets 0. v runs over all entries of the model's head, also those beyond
    the tokenizer's vocabulary.
    """

    name = "entropy"

    def score(self, batch: TokenBatch) -> Scores:
        """Score every token; a document that the model cannot score is rejected, and the run goes on."""
        rejects: dict[int, str] = {}
        values = self.measure(batch, self.checkpoints[0], rejects, entropy=True)
        kept = ~np.isin(batch.document_index, list(rejects))
        counted = batch.supervised & kept
        counted[batch.offsets[:-1][batch.lengths > 0]] = False
        values[~kept] = 0.0
        counters = {
            "scored_tokens": float(counted.sum()),
            "entropy_sum": float(values[counted].sum(dtype=np.float64)),
            "rejected_documents": float(len(rejects)),
        }
        return Scores({self.name: values.astype(np.float32)}, rejects, counters)

    def report(self, counters: Mapping[str, float]) -> dict[str, Any]:
        """State the mean entropy over supervised tokens, in nats; None without tokens."""
        tokens = counters.get("scored_tokens", 0.0)
        return {
            **self.parameters,
            "device": self.device,
            "batch_tokens": self.batch_tokens,
            "mean_entropy": counters.get("entropy_sum", 0.0) / tokens if tokens else None,
            "rejected_documents": int(counters.get("rejected_documents", 0)),
        }
