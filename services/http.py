"""HTTP plumbing around the handlers: bodies within their limit, who may ask, clients that go away, a log line each.

What enters: ASGI events. What leaves: bytes for the handlers, and one log line and metrics for each request.
"""

import asyncio
import hashlib
import hmac
import itertools
import time
import uuid
from collections.abc import Awaitable
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.connections import MARK
from services.errors import ApiError, error_response
from services.logs import LOGGER, failure, log
from services.metrics import Metrics

T = TypeVar("T")
NOTES = "sft_go.notes"  # in the ASGI scope: what a handler adds to its request's log line


def note(request: Request, **fields: Any) -> None:
    """Add fields to the request's log line. Never a text."""
    request.scope.setdefault(NOTES, {}).update(fields)


def require_key(request: Request, key: str | None) -> None:
    """Refuse a request without the API key, in a time that does not depend on what was sent.

    Raises:
        ApiError: `unauthorized`.
    """
    if key is None:
        return
    scheme, _, sent = request.headers.get("authorization", "").partition(" ")
    # Headers arrive decoded as Latin-1; these are the bytes that were sent.
    digests = [hashlib.sha256(value).digest() for value in (key.encode(), sent.strip().encode("latin-1"))]
    if not hmac.compare_digest(*digests) or scheme.lower() != "bearer":
        raise ApiError(
            "unauthorized", "expected the header `Authorization: Bearer <API key>`.", {"WWW-Authenticate": "Bearer"}
        )


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Read the body, and no more of it than the limit.

    Raises:
        ApiError: `too_large`, by the declared length or by what came.
        ClientDisconnect: the client has gone.
    """
    message = f"the body is over {max_bytes:,} bytes (SFT_GO_MAX_BODY_BYTES)."
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > max_bytes:
        raise ApiError("too_large", message, {"Connection": "close"})
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > max_bytes:
            raise ApiError("too_large", message, {"Connection": "close"})
        parts.append(part)
    return b"".join(parts)


async def until_gone(request: Request, work: Awaitable[T]) -> T:
    """Wait for `work`, unless the client goes away first. To be called after the body was read.

    Raises:
        ClientDisconnect: the client has gone; `work` was cancelled.
    """
    wanted = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request.receive))
    try:
        await asyncio.wait((wanted, gone), return_when=asyncio.FIRST_COMPLETED)
        if wanted.done():
            return wanted.result()
        raise ClientDisconnect
    finally:
        wanted.cancel()
        gone.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Observer:
    """ASGI middleware: counts and logs every request, and turns what nothing else caught into an answer."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: set[str]):
        self.app = app
        self.metrics = metrics
        self.start, self.number = uuid.uuid4().hex[:8], itertools.count(1)  # of request ids
        self.is_limited = True  # until a request says otherwise
        self.paths = paths  # others are counted as "other", so that nobody can make new metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.monotonic()
        if self.is_limited and MARK not in scope.get("extensions", {}):
            self.is_limited = False
            log("connections_not_limited", 30, text="add --http services.connections:Connection to uvicorn's flags")
        request_id = f"{self.start}-{next(self.number)}"
        status = 0

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                extra = [(b"x-request-id", request_id.encode()), (b"x-content-type-options", b"nosniff")]
                message = {**message, "headers": [*message.get("headers", []), *extra]}
            await send(message)

        try:
            await self.app(scope, receive, observed)
        except ClientDisconnect:
            status = 499  # nobody hears the answer; the number is nginx's for this
        except Exception as error:
            log("request_failed", 40, request_id=request_id, **failure(error))
            if status == 0:
                response = error_response(500, "internal", f"internal error; the log has it as {request_id}.")
                await response(scope, receive, observed)
        finally:
            seconds = time.monotonic() - started
            path = scope["path"] if scope["path"] in self.paths else "other"
            method = scope["method"] if scope["method"] in ("GET", "POST", "HEAD", "OPTIONS") else "other"
            self.metrics.requests.labels(method, path, str(status)).inc()
            self.metrics.latency.labels(path).observe(seconds)
            if path not in ("/health", "/ready", "/metrics") or status >= 500:
                fields = {"method": method, "path": path, "status": status, "ms": round(seconds * 1000, 2)}
                level = 30 if status >= 500 else 20
                if LOGGER.isEnabledFor(level):
                    log("request", level, request_id=request_id, **fields, **scope.get(NOTES, {}))
