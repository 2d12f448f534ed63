"""From segments to tokens, for a whole shard at a time.

What enters: documents as lists of segments. What leaves: a `TokenBatch`. Segments are tokenized separately and
concatenated, as they will be at inference time, by one call of the Rust tokenizer for the whole shard; the rest is
numpy on flat arrays.
"""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np

from annotate.tokens.batch import TokenBatch
from annotate.tokens.templates import Segment
from common.downloads import on_disk
from common.errors import UserError
from common.hints import missing_path
from common.storage import StorageError
from common.tokenizers import require_fast, tokenizer_fingerprint


def load_tokenizer(name: str, revision: str | None = None) -> Any:
    """Load a fast tokenizer from a directory or the hub, without running remote code.

    Raises:
        UserError: it is not there, cannot be reached, or is a slow one.
    """
    if problem := missing_path(name):
        raise UserError(f"--tokenizer {name}: {problem}")
    from transformers import AutoTokenizer

    try:
        with _no_collection():
            tokenizer = AutoTokenizer.from_pretrained(on_disk(name), revision=revision, trust_remote_code=False)
    except StorageError as error:
        raise UserError(f"--tokenizer {name}: {error}") from error
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise UserError(
            f"--tokenizer {name}: could not be loaded from a directory or the Hugging Face hub "
            f"({type(error).__name__}: {reason}). Give a local directory that holds tokenizer.json and "
            "tokenizer_config.json; for a gated model, accept its terms and run `hf auth login`; "
            "`--data sample` needs no tokenizer from the hub."
        ) from error
    require_fast(tokenizer, name)
    return tokenizer


@contextmanager
def _no_collection() -> Iterator[None]:
    """Pause the cycle collector, which walks a growing tokenizer.json again and again: a third of the loading time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@dataclass
class TokenizedDocuments:
    """What `TargetTokenizer.tokenize` returns."""

    batch: TokenBatch
    num_truncated: int
    unsupervised: list[int] = field(default_factory=list)  # source rows without a supervised token, not in the batch


@lru_cache(maxsize=2)
def load_target(name: str, revision: str | None = None) -> "TargetTokenizer":
    """Return the target tokenizer, loaded once in each process (Llama 3's takes a second)."""
    return TargetTokenizer(name, revision)


def find_prefix(backend: Any) -> list[int]:
    """Return the ids of the special tokens that a tokenizer's `backend_tokenizer` puts before any text."""
    with_special = backend.encode("a", add_special_tokens=True)
    return with_special.ids[: with_special.special_tokens_mask.index(0)]


class TargetTokenizer:
    """The tokenizer of the model to be fine-tuned.

    Attributes:
        tokenizer: the `transformers` fast tokenizer.
        prefix: ids of the special tokens that the tokenizer itself puts first (BOS for Llama 3).
        fingerprint: `common.tokenizers.tokenizer_fingerprint`.
    """

    def __init__(self, name: str, revision: str | None = None):
        self.tokenizer = load_tokenizer(name, revision)
        self.fingerprint = tokenizer_fingerprint(self.tokenizer)
        backend = self.tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        self.prefix = find_prefix(backend)
        # Text of a record that reads like a special token stays text: only templates make special tokens.
        backend.encode_special_tokens = True
        self.backend = backend

    def special_id(self, token: str) -> int:
        """Return the id of a special token."""
        token_id = self.tokenizer.convert_tokens_to_ids(token)
        assert isinstance(token_id, int), token
        return token_id

    def tokenize(
        self,
        documents: Sequence[Sequence[Segment]],
        document_ids: Sequence[str],
        source_rows: Sequence[int],
        max_length: int,
        with_spans: bool,
    ) -> TokenizedDocuments:
        """Tokenize documents, put the prefix first, cut each at `max_length` tokens on the right.

        The text of a document that was cut ends where its last token ends. A document that keeps no supervised token is
        left out and its source row is returned.
        """
        segments = list(chain.from_iterable(documents))
        texts = [segment.text for segment in segments if not segment.special]
        encode = self.backend.encode_batch if with_spans else self.backend.encode_batch_fast
        encodings = iter(encode(texts, add_special_tokens=False))
        # One piece a segment, and before each document's first one the prefix; `prefix` pieces have no segment.
        pieces: list[list[int]] = []
        piece_supervised: list[bool] = []
        piece_documents: list[int] = []
        spans: list[np.ndarray] = []
        full_texts: list[str] = []
        for index, document in enumerate(documents):
            prefix = [] if self.starts_with_prefix(document) else self.prefix
            pieces.append(prefix)
            piece_supervised.append(False)
            piece_documents.append(index)
            characters = 0
            if with_spans:
                spans.append(np.zeros((len(prefix), 2), dtype=np.int32))
            for segment in document:
                piece_supervised.append(segment.supervised)
                piece_documents.append(index)
                if segment.special:
                    pieces.append([self.special_id(segment.text)])
                    if with_spans:
                        spans.append(np.full((1, 2), characters, dtype=np.int32))
                    continue
                encoding = next(encodings)
                pieces.append(encoding.ids)
                if with_spans:
                    flat = np.fromiter(chain.from_iterable(encoding.offsets), np.int32, 2 * len(encoding))
                    spans.append(flat.reshape(-1, 2) + np.int32(characters))
                characters += len(segment.text)
            full_texts.append("".join(segment.text for segment in document if not segment.special))
        piece_lengths = np.fromiter(map(len, pieces), np.int64, len(pieces))
        input_ids = np.fromiter(chain.from_iterable(pieces), np.int32, int(piece_lengths.sum()))
        lengths = np.bincount(np.asarray(piece_documents, dtype=np.int64), piece_lengths, len(documents)).astype(
            np.int64
        )
        batch = TokenBatch(
            document_ids=list(document_ids),
            source_rows=np.asarray(source_rows, dtype=np.int64),
            texts=full_texts,
            input_ids=input_ids,
            supervised=np.repeat(np.asarray(piece_supervised, dtype=bool), piece_lengths),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            spans=np.concatenate(spans) if with_spans and spans else np.zeros((0, 2), np.int32) if with_spans else None,
        )
        num_truncated = 0
        if (lengths > max_length).any():
            batch, num_truncated = self._truncate(batch, documents, max_length)
        supervised = np.bincount(batch.document_index[batch.supervised], minlength=len(batch)) > 0
        if supervised.all():
            return TokenizedDocuments(batch, num_truncated)
        cut = lengths > max_length
        return TokenizedDocuments(
            batch.select(np.flatnonzero(supervised)),
            int((cut & supervised).sum()),
            batch.source_rows[~supervised].tolist(),
        )

    def starts_with_prefix(self, document: Sequence[Segment]) -> bool:
        """Tell whether a chat template wrote the prefix itself."""
        if len(document) < len(self.prefix):
            return False
        head = [self.special_id(part.text) if part.special else None for part in document[: len(self.prefix)]]
        return bool(self.prefix) and head == list(self.prefix)

    def _truncate(
        self, batch: TokenBatch, documents: Sequence[Sequence[Segment]], max_length: int
    ) -> tuple[TokenBatch, int]:
        """Keep the first `max_length` tokens of each document, and the text that they cover."""
        lengths = batch.lengths
        positions = np.arange(batch.num_tokens) - np.repeat(batch.offsets[:-1], lengths)
        keep = positions < max_length
        texts = list(batch.texts)
        cut = np.flatnonzero(lengths > max_length)
        for index in cut.tolist():
            texts[index] = texts[index][: self._characters_kept(documents[index], max_length)]
        kept = np.minimum(lengths, max_length)
        truncated = TokenBatch(
            document_ids=batch.document_ids,
            source_rows=batch.source_rows,
            texts=texts,
            input_ids=batch.input_ids[keep],
            supervised=batch.supervised[keep],
            offsets=np.concatenate([[0], np.cumsum(kept)]).astype(np.int64),
            spans=None if batch.spans is None else batch.spans[keep],
        )
        return truncated, len(cut)

    def _characters_kept(self, document: Sequence[Segment], max_length: int) -> int:
        """Return the number of characters that the first `max_length` tokens of a document cover."""
        left = max_length - (0 if self.starts_with_prefix(document) else len(self.prefix))
        characters = 0
        for segment in document:
            if left <= 0:
                return characters
            if segment.special:
                left -= 1
                continue
            encoding = self.backend.encode(segment.text, add_special_tokens=False)
            if len(encoding) > left:
                return characters + max((end for _, end in encoding.offsets[:left]), default=0)
            left -= len(encoding)
            characters += len(segment.text)
        return characters


def check_max_length(max_length: int, tokenizer: TargetTokenizer) -> None:
    """Raise a `UserError` for a length that leaves no room after the prefix."""
    if max_length <= len(tokenizer.prefix):
        raise UserError(f"--max-length {max_length}: expected more than the {len(tokenizer.prefix)} prefix token(s).")
