"""From scores to the JSON of a response, and groups when eta is given.

What enters: documents and their scores. What leaves: the bytes of a `ScoreResponse` (`services.schemas`).
"""

import json
import math
from collections.abc import Sequence
from typing import Any

from common.thresholds import important_tokens
from common.viewer.spans import token_texts
from services.catalog import Column
from services.errors import ApiError
from services.inputs import Document
from services.jobs import Scored
from services.schemas import ScoreRequest


def write_response(
    request: ScoreRequest, column: Column, documents: Sequence[Document], scored: Sequence[Scored]
) -> bytes:
    """Return the body of a response.

    Raises:
        ApiError: the grouper refused an input.
    """
    for number, result in enumerate(scored):
        if result.reject is not None:
            raise ApiError("invalid_input", f"input {number}: {result.reject}")
    value = {
        "grouper": column.name,
        "kind": column.kind,
        "tokenizer": column.target.name,
        "eta": request.eta,
        "ties": request.ties,
        "results": [
            _result(request, column, document, result) for document, result in zip(documents, scored, strict=True)
        ],
    }
    # Lone surrogates cannot be in a document, so this encodes.
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def describe_result(
    request: ScoreRequest, column: Column, document: Document, scored: Scored
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Return what is said of a document as a whole, and of its tokens: lists of equal length, by field."""
    batch = document.batch
    scores = scored.columns[column.name]
    assert batch.spans is not None
    fields: dict[str, list[Any]] = {
        "id": batch.input_ids.tolist(),
        "text": token_texts(batch.texts[0], batch.input_ids, batch.spans, column.target.special_tokens),
        "start": batch.spans[:, 0].tolist(),
        "end": batch.spans[:, 1].tolist(),
        "supervised": batch.supervised.tolist(),
        "score": scores.tolist(),
    }
    threshold = None
    if request.eta is not None:
        groups = important_tokens(scores, batch.supervised, request.eta, request.ties)
        fields["important"] = groups.important.tolist()
        threshold = None if math.isnan(groups.threshold) else groups.threshold
    described = {
        "text": batch.texts[0],
        "threshold": threshold,
        "num_chunks": scored.num_chunks,
        "truncated": document.truncated,
    }
    return described, fields


def token_rows(fields: dict[str, list[Any]], start: int = 0, end: int | None = None) -> list[dict[str, Any]]:
    """Return the tokens from `start` to `end`, an object each."""
    columns = [values[start:end] for values in fields.values()]
    return [dict(zip(fields, values, strict=True)) for values in zip(*columns, strict=True)]


def _result(request: ScoreRequest, column: Column, document: Document, scored: Scored) -> dict[str, Any]:
    described, fields = describe_result(request, column, document, scored)
    return {"text": described.pop("text"), "tokens": token_rows(fields), **described}
