"""Where the tokens of a finished shard stand in their documents' texts, without the source.

What enters: a `TokenBatch` without spans, as a shard holds it, and the target tokenizer. What leaves: the same with
spans, exactly those that tokenizing the source gives. A document is cut where its segments met: at special tokens and
where supervision changes. Each piece of its text is tokenized again, and counts only when the same tokens come out.
"""

from dataclasses import replace
from itertools import pairwise

import numpy as np

from annotate.tokens.batch import TokenBatch
from annotate.tokens.target import TargetTokenizer


def with_spans(batch: TokenBatch, target: TargetTokenizer) -> tuple[TokenBatch, list[str]]:
    """Return the batch with spans, and the ids of documents whose spans cannot be told (theirs are empty)."""
    added = target.tokenizer.added_tokens_decoder.items()
    special = np.array(sorted(index for index, token in added if token.special), dtype=np.int64)
    is_special = np.isin(batch.input_ids, special)
    spans = np.zeros((batch.num_tokens, 2), dtype=np.int32)
    lost = []
    for document in range(len(batch)):
        here = batch.tokens_of(document)
        found = _spans(batch.input_ids[here], batch.supervised[here], is_special[here], batch.texts[document], target)
        if found is None:
            lost.append(batch.document_ids[document])
        else:
            spans[here] = found
    return replace(batch, spans=spans), lost


def _spans(
    ids: np.ndarray, supervised: np.ndarray, special: np.ndarray, text: str, target: TargetTokenizer
) -> np.ndarray | None:
    """Return int32 [num_tokens, 2] of one document, or None."""
    spans = np.zeros((len(ids), 2), dtype=np.int32)
    borders = np.flatnonzero((supervised[1:] != supervised[:-1]) | special[1:] | special[:-1]) + 1
    starts, at = [0, *borders.tolist(), len(ids)], 0
    for start, stop in pairwise(starts):
        if start == stop:
            continue
        if special[start]:
            spans[start:stop] = at
            continue
        piece = target.backend.decode(ids[start:stop].tolist(), skip_special_tokens=False)
        if not special[stop:].size or special[stop:].all():
            piece = text[at:]  # the last piece, which a cut may have ended within a character
        if not text.startswith(piece, at):
            return None
        encoding = target.backend.encode(piece, add_special_tokens=False)
        if encoding.ids != ids[start:stop].tolist():
            return None
        spans[start:stop] = np.array(encoding.offsets, dtype=np.int32).reshape(-1, 2) + np.int32(at)
        at += len(piece)
    return spans if at == len(text) else None
