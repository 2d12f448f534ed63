"""llmlingua2: each token's probability to be kept by an LLMLingua-2 compressor (paper section 3.3; DESIGN: section 4).

What enters: tokenized documents with their texts and character spans. What leaves: the column `llmlingua2`, an
importance: the compressor's word probabilities (`model.py`), carried over to the target tokens by the characters they
share (`alignment.py`).
"""

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from annotate.groupers.base import Grouper, GrouperOptions, ModelFlags
from annotate.groupers.llmlingua2.alignment import Aligned, align
from annotate.groupers.llmlingua2.checkpoint import DEFAULT_MODEL, FLAG, Checkpoint
from annotate.groupers.llmlingua2.model import Compressor
from annotate.models.checkpoints import is_local, resolve_device, resolve_dtype
from annotate.tokens.batch import Scores, TokenBatch
from common.errors import UserError
from common.thresholds import important_tokens

ETAS = (0.5, 0.7, 0.9)
# Documents scored in float32 too when the run is below it: the first few of a source, so that small runs have some, and
# about one in 256 of the rest. A GPU is up to ten times slower in float32, so the sample costs a few percent.
SAMPLE_ROWS = 8
SAMPLE_ONE_IN = 256


@dataclass(frozen=True)
class Llmlingua2Flags(ModelFlags):
    """The flags of `llmlingua2`."""

    compressor_model: str | None = field(
        default=None, metadata={"help": f"The compressor: a directory or a hub id. Default: {DEFAULT_MODEL}."}
    )
    package_parity: bool | None = field(
        default=None,
        metadata={"help": "Score exactly as the llmlingua 0.2.2 package does, foreign special tokens included."},
    )


class Llmlingua2(Grouper):
    """Keep-probabilities in [0, 1], float32; 0 for a token that overlaps no word (special, white space only)."""

    name = "llmlingua2"
    Flags = Llmlingua2Flags
    needs_spans = True
    uses_model = True

    def __init__(self, checkpoint: Checkpoint, dtype: str, device: str, batch_tokens: int | None, package_parity: bool):
        self.checkpoint = checkpoint
        self.dtype = dtype
        self.device = device
        self.batch_tokens = batch_tokens
        self.package_parity = package_parity
        self._compressors: dict[str, Compressor] = {}  # by dtype; filled by the first `score`
        self._lock = threading.Lock()

    @classmethod
    def from_options(cls, options: GrouperOptions) -> "Llmlingua2":
        flags = options.read(Llmlingua2Flags)
        checkpoint = Checkpoint.find(flags.compressor_model or DEFAULT_MODEL)
        return cls._build(checkpoint, flags.dtype, bool(flags.package_parity), flags)

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any], options: GrouperOptions) -> "Llmlingua2":
        name, revision = parameters["compressor_model"], parameters["compressor_revision"]
        if is_local(name, FLAG):
            checkpoint = Checkpoint.find(name)
            if checkpoint.revision != revision:
                raise UserError(
                    f"{FLAG} {name}: the checkpoint has changed: expected {revision}, found {checkpoint.revision}. "
                    "Put the old one back, or annotate again into another directory."
                )
        else:
            checkpoint = Checkpoint(name, name, revision)  # a commit: the hub gives the same content
        return cls._build(checkpoint, parameters["dtype"], parameters["package_parity"], options.read(Llmlingua2Flags))

    @classmethod
    def _build(
        cls, checkpoint: Checkpoint, dtype: str | None, package_parity: bool, flags: Llmlingua2Flags
    ) -> "Llmlingua2":
        device = resolve_device(flags.device)
        if flags.batch_tokens is not None and flags.batch_tokens < 1:
            raise UserError(f"--batch-tokens {flags.batch_tokens}: expected a positive number of tokens.")
        return cls(checkpoint, resolve_dtype(dtype, device), device, flags.batch_tokens, package_parity)

    @property
    def parameters(self) -> dict[str, Any]:
        return {
            "compressor_model": self.checkpoint.name,
            "compressor_revision": self.checkpoint.revision,
            "dtype": self.dtype,
            "package_parity": self.package_parity,
        }

    def __getstate__(self) -> dict[str, Any]:
        """Travel without loaded models."""
        state = {**self.__dict__, "_compressors": {}}
        del state["_lock"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def compressor(self, dtype: str | None = None) -> Compressor:
        """Return the compressor, by default in the run's dtype; loaded the first time it is asked for."""
        dtype = dtype or self.dtype
        with self._lock:
            if dtype not in self._compressors:
                self._compressors[dtype] = Compressor(
                    self.checkpoint, dtype, self.device, self.batch_tokens, self.package_parity
                )
            return self._compressors[dtype]

    def score(self, batch: TokenBatch) -> Scores:
        """Score every token; a document for which the model gives no finite number is rejected."""
        aligned, num_chunks = self._score(batch, self.compressor())
        rejects = {
            int(
                document
            ): f"Document {batch.document_ids[document]}: the compressor {self.checkpoint.name} gives scores "
            f"that are not finite in {self.dtype}. Use --dtype float32."
            for document in np.unique(batch.document_index[~np.isfinite(aligned.scores)])
        }
        scored = batch.supervised & ~np.isin(batch.document_index, list(rejects))
        counters = {
            "chunks": float(num_chunks.sum()),
            "supervised_tokens": float(scored.sum()),
            "supervised_without_overlap": float((scored & ~aligned.covered).sum()),
        }
        if self.dtype != "float32":
            counters |= self._count_flips(batch, aligned.scores, rejects)
        scores = aligned.scores
        scores[~np.isfinite(scores)] = 0.0
        return Scores({self.name: scores}, rejects, counters, num_chunks)

    def _score(self, batch: TokenBatch, compressor: Compressor) -> tuple[Aligned, np.ndarray]:
        """Return the target tokens' scores, and the number of chunks of each document."""
        assert batch.spans is not None, "llmlingua2 needs spans"
        words = compressor.word_probabilities(batch.texts)
        aligned = align(
            batch.texts, batch.spans, batch.document_index, words.spans, words.documents, words.probabilities
        )
        return aligned, words.num_chunks

    def _count_flips(self, batch: TokenBatch, scores: np.ndarray, rejects: dict[int, str]) -> dict[str, float]:
        """Count the supervised tokens of the shard's sample that are in another group when scored in float32.

        The sample depends on documents' ids and source rows alone, so neither order nor shards change it.
        """
        chosen = [
            index
            for index, (document_id, row) in enumerate(zip(batch.document_ids, batch.source_rows, strict=True))
            if (row < SAMPLE_ROWS or _hash(document_id) % SAMPLE_ONE_IN == 0) and index not in rejects
        ]
        counters = dict.fromkeys(["sampled_documents", "sampled_tokens", *(f"flips_{eta}" for eta in ETAS)], 0.0)
        if not chosen:
            return counters
        sample = batch.select(np.array(chosen))
        exact, _ = self._score(sample, self.compressor("float32"))
        counters["sampled_documents"] = float(len(chosen))
        counters["sampled_tokens"] = float(sample.supervised.sum())
        for index, document in enumerate(chosen):
            there, here = sample.tokens_of(index), batch.tokens_of(document)
            for eta in ETAS:
                expected = important_tokens(exact.scores[there], sample.supervised[there], eta).important
                found = important_tokens(scores[here], batch.supervised[here], eta).important
                counters[f"flips_{eta}"] += float((expected != found).sum())
        return counters

    def report(self, counters: Mapping[str, float]) -> dict[str, Any]:
        """State what was run, the share of supervised tokens without overlap, and below float32 the shares of flips."""
        supervised = counters.get("supervised_tokens", 0.0)
        report: dict[str, Any] = {
            **self.parameters,
            "device": self.device,
            "chunks": int(counters.get("chunks", 0.0)),
            "share_without_overlap": counters.get("supervised_without_overlap", 0.0) / supervised
            if supervised
            else 0.0,
        }
        if self.dtype == "float32":
            return report
        sampled = counters.get("sampled_tokens", 0.0)
        return {
            **report,
            "sampled_documents": int(counters.get("sampled_documents", 0.0)),
            "sampled_supervised_tokens": int(sampled),
            "share_in_another_group_than_in_float32": {
                f"eta={eta}": counters.get(f"flips_{eta}", 0.0) / sampled if sampled else None for eta in ETAS
            },
        }


def _hash(document_id: str) -> int:
    """Return 64 bits of a document's id."""
    return int.from_bytes(hashlib.blake2b(document_id.encode(), digest_size=8).digest(), "little")
