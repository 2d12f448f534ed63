"""rho1: each token's cross-entropy under a frozen reference model (paper section 3.3, CE(w; phi) of equation 9).

What enters: tokenized documents. What leaves: the column `rho1`, a reference loss; it becomes an importance only in the
trainer, which subtracts it from the loss of the model being trained. With `--base-model` also `rho1_excess`, an
importance: the excess loss CE(w; base) − CE(w; phi) with a fixed model in the place of the one being trained.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from annotate.groupers.reference import ReferenceFlags, ReferenceGrouper
from annotate.tokens.batch import Scores, TokenBatch
from common.manifest import Kind


@dataclass(frozen=True)
class Rho1Flags(ReferenceFlags):
    """The flags of `rho1`."""

    base_model: str | None = field(
        default=None,
        metadata={"help": "Also write `rho1_excess`, the loss of this model less that of the reference model."},
    )


class Rho1(ReferenceGrouper):
    """Reference losses in nats, float32; for every token, supervised or not; 0 for the first of each document."""

    name = "rho1"
    Flags = Rho1Flags
    roles = ("reference", "base")

    @property
    def columns(self) -> dict[str, Kind]:
        kinds: dict[str, Kind] = {"rho1": "reference_loss"}
        if len(self.checkpoints) == 2:
            kinds["rho1_excess"] = "importance"
        return kinds

    def score(self, batch: TokenBatch) -> Scores:
        """Score every token; a document that a model cannot score is rejected, and the run goes on."""
        rejects: dict[int, str] = {}
        losses: dict[str, np.ndarray] = {}
        for checkpoint in self.checkpoints:
            losses[checkpoint.role] = self.measure(batch, checkpoint, rejects)
        kept = ~np.isin(batch.document_index, list(rejects))
        counted = batch.supervised & kept
        counted[batch.offsets[:-1][batch.lengths > 0]] = False  # a first token is predicted by nothing
        columns, counters = {}, {"scored_tokens": float(counted.sum()), "rejected_documents": float(len(rejects))}
        for role, values in losses.items():
            values[~kept] = 0.0
            counters[f"{role}_loss_sum"] = float(values[counted].sum(dtype=np.float64))
        columns["rho1"] = losses["reference"].astype(np.float32)
        if "base" in losses:
            columns["rho1_excess"] = (losses["base"] - losses["reference"]).astype(np.float32)
        return Scores(columns, rejects, counters)

    def report(self, counters: Mapping[str, float]) -> dict[str, Any]:
        """State each model's mean loss over supervised tokens (nats) and its perplexity; None without tokens."""
        tokens = counters.get("scored_tokens", 0.0)
        report: dict[str, Any] = {**self.parameters, "device": self.device, "batch_tokens": self.batch_tokens}
        for checkpoint in self.checkpoints:
            mean = counters.get(f"{checkpoint.role}_loss_sum", 0.0) / tokens if tokens else None
            report[f"mean_{checkpoint.role}_loss"] = mean
            # Past exp(700) a perplexity says nothing and is no JSON number.
            report[f"{checkpoint.role}_perplexity"] = None if mean is None or mean > 700 else float(np.exp(mean))
        return {**report, "rejected_documents": int(counters.get("rejected_documents", 0))}
