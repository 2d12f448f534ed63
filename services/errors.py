"""Errors of the API: one JSON shape, `{"error": sentence, "error_type": word}`, for everything that is not answered.

What enters: what a handler or the framework raised. What leaves: the response. Each word has one status:
"""

import json
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

STATUSES = {
    "bad_request": 400,
    "unauthorized": 401,
    "not_found": 404,
    "method_not_allowed": 405,
    "timeout": 408,
    "too_large": 413,
    "unsupported_media_type": 415,
    "invalid_input": 422,
    "overloaded": 429,
    "headers_too_large": 431,
    "internal": 500,
    "not_ready": 503,
}
MEANINGS = {
    400: "What was sent is no HTTP request.",
    401: "An API key is set and the request lacks it.",
    404: "There is no such path.",
    405: "The path does not take this method.",
    408: "The request was not complete in time.",
    413: "The request is over a limit of this server: body, inputs, characters or tokens.",
    415: "The body is not JSON in UTF-8.",
    422: "The request or one of its inputs is wrong.",
    429: "The queue is full, or all connections are busy. Try again later.",
    431: "The headers are over the limit of this server.",
    500: "A bug, or a model that failed on this request.",
    503: "The grouper is not loaded yet, or has failed.",
}


class ApiError(Exception):
    """An answer that is not a success."""

    def __init__(self, error_type: str, message: str, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.error_type = error_type
        self.status = STATUSES[error_type]
        self.headers = headers

    def response(self) -> Response:
        """Return the JSON response."""
        return error_response(self.status, self.error_type, str(self), self.headers)


def error_response(status: int, error_type: str, message: str, headers: dict[str, str] | None = None) -> Response:
    """Return an error in its JSON shape; escaped to ASCII, so that lone surrogates in a message do no harm."""
    content = json.dumps({"error": message, "error_type": error_type}).encode("ascii")
    return Response(content, status, headers, media_type="application/json")


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route in the OpenAPI document."""
    schema = {"$ref": "#/components/schemas/Error"}
    return {
        status: {"description": MEANINGS[status], "content": {"application/json": {"schema": schema}}}
        for status in statuses
    }


def install(app: FastAPI) -> None:
    """Give every error of the framework the same shape."""
    words = {status: word for word, status in STATUSES.items()}

    @app.exception_handler(ApiError)
    async def on_api_error(request: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def on_validation_error(request: Request, error: RequestValidationError) -> Response:
        return error_response(422, "invalid_input", describe(error.errors()))

    @app.exception_handler(HTTPException)
    async def on_http_exception(request: Request, error: HTTPException) -> Response:
        word = words.get(error.status_code, "invalid_input" if error.status_code < 500 else "internal")
        headers = dict(error.headers) if error.headers else None
        return error_response(error.status_code, word, str(error.detail), headers)


def describe(problems: Any, most: int = 3) -> str:
    """Turn pydantic's errors into a sentence. What was sent is not repeated."""
    parts = []
    for problem in problems[:most]:
        place = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        parts.append(f"{place}: {message}" if place else message)
    more = f" (and {len(problems) - most} more)" if len(problems) > most else ""
    return "; ".join(parts) + more
