"""Requests and responses of the API: one definition that checks, documents and is tested.

What enters: the JSON of a request. What leaves: a checked `ScoreRequest`. Responses are written by `services.responses`
in exactly these shapes (a test validates them), not through these models: a document has thousands of tokens.
"""

import json
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from services.errors import ApiError, describe


class Message(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: str = Field(description="`system`, `user` or `assistant` (and the usual other names of these three).")
    content: str


Input = str | list[Message]

_MESSAGES: dict[str, Any] = {"type": "array", "minItems": 1, "items": {"$ref": "#/components/schemas/Message"}}
INPUTS_SCHEMA: dict[str, Any] = {  # put in by services.openapi: pydantic would not resolve the reference
    "description": "A text, all of which is supervised; a list of messages that ends with a response, which goes "
    "through the template of the shard directory; or a list of several of either.",
    "anyOf": [
        {"type": "string", "minLength": 1},
        _MESSAGES,
        {"type": "array", "minItems": 1, "items": {"anyOf": [{"type": "string", "minLength": 1}, _MESSAGES]}},
    ],
}


def _one(value: Any, place: str) -> Input:
    """Check one input."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise ValueError(f"{place}expected a string or a list of messages, found {_kind(value)}")
    messages = []
    for number, message in enumerate(value):
        try:
            messages.append(Message.model_validate(message))
        except ValidationError as error:
            raise ValueError(f"{place}message {number}: {describe(error.errors())}") from error
    return messages


def _kind(value: Any) -> str:
    if isinstance(value, list):
        return "an empty list" if not value else "a list"
    names = {dict: "an object", bool: "a boolean", int: "a number", float: "a number", type(None): "null"}
    return names.get(type(value), "something else")


def check_inputs(value: Any) -> list[Input]:
    """Turn the three forms of `inputs` into a list of inputs."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise ValueError(f"expected a string, a list of strings, or a list of messages, found {_kind(value)}")
    if isinstance(value[0], dict):
        return [_one(value, "")]
    return [_one(item, f"input {number}: ") for number, item in enumerate(value)]


class ScoreRequest(BaseModel):
    """What to score, and how."""

    model_config = ConfigDict(extra="forbid", strict=True)

    inputs: Annotated[Any, BeforeValidator(check_inputs)]
    grouper: str | None = Field(
        None, description="A score column of `GET /v1/groupers`. May be left out where there is only one."
    )
    eta: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="The share of supervised tokens that is not important. With it, tokens say whether they are.",
    )
    ties: Literal["threshold", "rank"] = Field(
        "threshold", description="`threshold`: scores above the eta-quantile; `rank`: exactly the top 1 - eta."
    )
    tokenizer: str | None = Field(
        None, description="A target tokenizer of `GET /v1/groupers`; by default the first that has the grouper."
    )


class Token(BaseModel):
    """A token of the target tokenizer."""

    id: int
    text: str = Field(description="Its characters. A token that is a part of a character shows the character.")
    start: int = Field(description="First character in the document's text, counted in code points.")
    end: int = Field(description="End (exclusive). Special tokens have no characters: start = end.")
    supervised: bool = Field(description="The loss is taken over it: it belongs to a response.")
    score: float
    important: bool | None = Field(None, description="Only with `eta`.")


class Result(BaseModel):
    """The scores of one input."""

    text: str = Field(description="The document's text: what the template made of the input, cut at the maximum length")
    tokens: list[Token]
    threshold: float | None = Field(description="The eta-quantile of the supervised scores; null without `eta`.")
    num_chunks: int = Field(description="Pieces that the model saw the text in.")
    truncated: bool = Field(description="The document was longer than the maximum length.")


class ScoreResponse(BaseModel):
    """One result for each input, in their order."""

    grouper: str
    kind: Literal["importance", "reference_loss"]
    tokenizer: str
    eta: float | None
    ties: Literal["threshold", "rank"]
    results: list[Result]


class GrouperEntry(BaseModel):
    """A score column that can be asked for."""

    name: str
    method: str = Field(description="The grouper that writes the column.")
    kind: Literal["importance", "reference_loss"]
    tokenizers: list[str]
    ready: bool
    parameters: dict[str, Any] = Field(description="What determines the scores. Directories are given by name only.")


class Error(BaseModel):
    """Every answer that is not a success."""

    error: str = Field(description="A sentence that says what is wrong.")
    error_type: str = Field(description="A word for programs, such as `invalid_input` or `overloaded`.")


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def parse_request(body: bytes, content_type: str, content_encoding: str) -> ScoreRequest:
    """Turn a body into a request.

    Raises:
        ApiError: `unsupported_media_type` for anything but JSON in UTF-8, `invalid_input` for a request that is wrong.
    """
    kind, _, options = content_type.lower().partition(";")
    charset = re.search(r"charset\s*=\s*\"?([^\s;\"]+)", options)
    if content_encoding.lower() not in ("", "identity"):
        raise ApiError("unsupported_media_type", f"Content-Encoding {content_encoding[:40]!r}: send the body as it is.")
    if kind.strip() != "application/json" or (charset and charset[1] not in ("utf-8", "utf8", "us-ascii")):
        raise ApiError(
            "unsupported_media_type",
            f"expected Content-Type: application/json in UTF-8, found {content_type[:80]!r}.",
        )
    try:
        value = json.loads(body.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise ApiError("invalid_input", f"the body is not UTF-8: byte {error.start}.") from error
    except RecursionError as error:
        raise ApiError("invalid_input", "the body is nested too deeply.") from error
    except json.JSONDecodeError as error:
        raise ApiError("invalid_input", f"the body is not JSON: {error.msg} at character {error.pos}.") from error
    except ValueError as error:  # NaN, infinities, integers of thousands of digits
        raise ApiError("invalid_input", f"the body is not JSON that can be read: {str(error)[:100]}.") from error
    if not isinstance(value, dict):
        raise ApiError("invalid_input", f"expected a JSON object, found {_kind(value)}.")
    try:
        return ScoreRequest.model_validate(value)
    except ValidationError as error:
        raise ApiError("invalid_input", describe(error.errors())) from error
