"""`POST /v1/score` with `Accept: application/x-ndjson`: an answer in lines, each sent as soon as it is known.

What enters: the documents of a request, each a job of its own with the grouper's thread. What leaves: lines of JSON,

    {"grouper": …, "kind": …, "tokenizer": …, "eta": …, "ties": …, "inputs": 2}
    {"input": 0, "text": …, "threshold": …, "num_tokens": 812, "num_chunks": 2, "truncated": false}
    {"input": 0, "first": 0, "tokens": [… at most 256, as in the plain answer …]}
    {"input": 0, "first": 256, "tokens": […]}
    {"input": 1, "error": …, "error_type": …}
    {"done": true}

so neither side holds more of it than a line. Inputs come in their order. The status is sent before the scores are
known: an input that fails is a line, and the others go on. An answer without its last line was cut.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from services.batching import Worker
from services.catalog import Column
from services.errors import ApiError
from services.inputs import Document
from services.jobs import Job
from services.logs import failure, log
from services.responses import describe_result, token_rows
from services.schemas import ScoreRequest

MEDIA_TYPE = "application/x-ndjson"
TOKENS_PER_LINE = 256


def is_asked_for(accept: str) -> bool:
    """Tell whether the header `Accept` names the format (with a weight of 0 it does not)."""
    for part in accept.lower().split(","):
        kind, *parameters = (item.strip() for item in part.split(";"))
        if kind == MEDIA_TYPE and not any(item.replace(" ", "") in ("q=0", "q=0.0") for item in parameters):
            return True
    return False


def submit_all(worker: Worker, documents: list[Document]) -> list[Job]:
    """Queue each document as a job of its own: all of them, or none.

    Raises:
        ApiError: `not_ready`, or `overloaded`.
    """
    jobs: list[Job] = []
    try:
        for document in documents:
            jobs.append(worker.submit([document]))
    except ApiError:
        for job in jobs:
            worker.abandon(job)
        raise
    return jobs


async def write_lines(
    asked: ScoreRequest, column: Column, documents: list[Document], jobs: list[Job]
) -> AsyncIterator[bytes]:
    """Yield the lines; when the client goes away, what was not scored yet is not."""
    try:
        head = {"grouper": column.name, "kind": column.kind, "tokenizer": column.target.name}
        yield _line({**head, "eta": asked.eta, "ties": asked.ties, "inputs": len(documents)})
        for number, job in enumerate(jobs):
            try:
                (scored,) = await job.future
                if scored.reject is not None:
                    raise ApiError("invalid_input", scored.reject)
                described, fields = describe_result(asked, column, documents[number], scored)
            except ApiError as error:
                yield _line({"input": number, "error": str(error), "error_type": error.error_type})
                continue
            except Exception as error:
                log("input_failed", 40, grouper=column.name, **failure(error))
                text = f"{column.name} failed on this input; the server log says how."
                yield _line({"input": number, "error": text, "error_type": "internal"})
                continue
            num_tokens = documents[number].num_tokens
            yield _line({"input": number, **described, "num_tokens": num_tokens})
            for first in range(0, num_tokens, TOKENS_PER_LINE):
                rows = token_rows(fields, first, first + TOKENS_PER_LINE)
                yield _line({"input": number, "first": first, "tokens": rows})
                await asyncio.sleep(0)  # others' short requests come between
        yield _line({"done": True})
    finally:
        for job in jobs:
            if not job.future.done():
                column.worker.abandon(job)
            elif not job.future.cancelled():
                job.future.exception()  # nobody else asks for it


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode() + b"\n"
