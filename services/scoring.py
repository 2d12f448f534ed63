"""The routes that score: `POST /v1/score` and `GET /v1/groupers`.

What enters: requests. What leaves: scores. A request goes: key, body, JSON, tokens (`services.inputs`), the grouper's
thread (`services.batching`), JSON. The event loop does short things only; long ones go to a small pool of threads.
"""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from starlette.responses import Response, StreamingResponse

from services import openapi, streaming
from services.catalog import Catalog, public_parameters
from services.errors import ApiError, documented
from services.http import note, read_body, require_key, until_gone
from services.responses import write_response
from services.schemas import GrouperEntry, ScoreResponse, parse_request
from services.settings import Settings

T = TypeVar("T")
SHORT_BODY = 1 << 13  # bytes of JSON that are handled in the event loop: a hop to a thread costs more
SHORT_TOKENS = 512  # the same for writing a response


def add_scoring(app: FastAPI, settings: Settings, catalog: Catalog) -> None:
    """Add the routes to the app."""

    async def work(short: bool, function: Callable[..., T], *arguments: Any) -> T:
        if short:
            return function(*arguments)
        return await asyncio.get_running_loop().run_in_executor(app.state.pool, function, *arguments)

    @app.post(
        "/v1/score",
        response_model=ScoreResponse,
        responses={200: openapi.SCORE_LINES, **documented(401, 408, 413, 415, 422, 429, 431, 500, 503)},
        openapi_extra={"requestBody": openapi.SCORE_BODY},
        tags=["scoring"],
    )
    async def score(request: Request) -> Response:
        """Score the tokens of one or several inputs; with `Accept: application/x-ndjson`, line by line."""
        require_key(request, settings.api_key)
        body = await read_body(request, settings.max_body_bytes)
        short = len(body) <= SHORT_BODY
        headers = request.headers
        content = headers.get("content-type", ""), headers.get("content-encoding", "")
        asked = await work(short, parse_request, body, *content)
        del body
        _check_limits(asked.inputs, settings)
        column = catalog.find(asked.grouper, asked.tokenizer)
        note(request, grouper=column.name, tokenizer=column.target.name, inputs=len(asked.inputs))
        if asked.eta is not None and column.kind == "reference_loss":
            raise ApiError(
                "invalid_input",
                f"eta: {column.name} is a reference loss, not an importance; only the trainer can make groups of it. "
                "Leave eta out.",
            )
        documents = await work(short, column.target.documents, asked.inputs)
        num_tokens = sum(document.num_tokens for document in documents)
        if num_tokens > settings.max_request_tokens:
            raise ApiError(
                "too_large",
                f"the inputs have {num_tokens:,} tokens together, at most {settings.max_request_tokens:,} are taken "
                "(SFT_GO_MAX_REQUEST_TOKENS).",
            )
        if streaming.is_asked_for(headers.get("accept", "")):
            jobs = streaming.submit_all(column.worker, documents)
            note(request, tokens=num_tokens)
            lines = streaming.write_lines(asked, column, documents, jobs)
            return StreamingResponse(lines, media_type=streaming.MEDIA_TYPE)
        job = column.worker.submit(documents)
        try:
            scored = await until_gone(request, job.future)
        except ApiError:
            raise
        except asyncio.CancelledError:
            column.worker.abandon(job)
            raise
        except Exception as error:
            column.worker.abandon(job)
            if error is job.error:
                raise ApiError("internal", f"{column.name} failed on this request; the server log says how.") from error
            raise
        note(request, tokens=num_tokens)
        written = await work(num_tokens <= SHORT_TOKENS, write_response, asked, column, documents, scored)
        return Response(written, media_type="application/json")

    @app.get("/v1/groupers", response_model=list[GrouperEntry], responses=documented(401), tags=["scoring"])
    async def groupers(request: Request) -> list[GrouperEntry]:
        """List the score columns that can be asked for."""
        require_key(request, settings.api_key)
        entries: dict[tuple[str, str], GrouperEntry] = {}
        for column in catalog.columns:
            worker = column.worker
            entry = entries.setdefault(
                (column.name, worker.name),
                GrouperEntry(
                    name=column.name,
                    method=worker.grouper.name,
                    kind=column.kind,
                    tokenizers=[],
                    ready=worker.state == "ready",
                    parameters=public_parameters(worker.grouper.parameters),
                ),
            )
            entry.tokenizers.append(column.target.name)
        return list(entries.values())


def _check_limits(inputs: list[Any], settings: Settings) -> None:
    """Refuse what is too large before any work is done on it."""
    if len(inputs) > settings.max_inputs:
        raise ApiError(
            "too_large", f"{len(inputs):,} inputs, at most {settings.max_inputs:,} are taken (SFT_GO_MAX_INPUTS)."
        )
    for number, item in enumerate(inputs):
        size = len(item) if isinstance(item, str) else sum(len(message.content) for message in item)
        if size > settings.max_input_characters:
            raise ApiError(
                "too_large",
                f"input {number} has {size:,} characters, at most {settings.max_input_characters:,} are taken "
                "(SFT_GO_MAX_INPUT_CHARACTERS).",
            )
