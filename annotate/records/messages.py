"""From a list of messages to turns: the spellings of roles, contents and tool calls that datasets use.

What enters: the value of a column such as `messages`. What leaves: `Turn`s, or a `DocumentError` with a reason code and
a sentence. Next: `annotate.records.conversations` makes conversations of them.

OpenAI's form is read in full: null contents beside tool calls, contents in parts, `refusal`, the older `function_call`,
and `weight: 0` for a response that is not to be trained on.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any


class DocumentError(ValueError):
    """A record that cannot become a document."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Turn:
    """One message.

    Attributes:
        role: "system", "user", "assistant" or "tool" (what a tool answered).
        content: its text.
        context: Alpaca's `input`, which some templates place by itself.
        tool_calls: an assistant's calls, each {"name": str, "arguments": any JSON value}.
        trained: False for a response that no loss is taken over.
        name: of the tool that answers, where it is given.
    """

    role: str
    content: str
    context: str = ""
    tool_calls: tuple[dict[str, Any], ...] = ()
    trained: bool = True
    name: str = ""


# Names that the common datasets use for the roles.
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
}
TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}  # type -> its field


def text_of(record: Mapping[str, Any], key: str, optional: bool = False) -> str:
    """Return a string of the record.

    Raises:
        DocumentError: it is missing, or no string.
    """
    value = record.get(key)
    if value is None and optional:
        return ""
    if value is None:
        raise DocumentError("missing_field", f"`{key}` is missing.")
    if not isinstance(value, str):
        raise DocumentError("wrong_type", f"`{key}` must be a string, found {type(value).__name__}.")
    return value


def turns_of(messages: Any, key: str, role_key: str = "role", content_key: str = "content") -> list[Turn]:
    """Return the turns of a list of messages.

    Raises:
        DocumentError: it is no list of objects, or one has an unknown role or content that is no text.
    """
    if not isinstance(messages, list):
        raise DocumentError("wrong_type", f"`{key}` must be a list of messages, found {type(messages).__name__}.")
    turns = []
    for number, message in enumerate(messages):
        where = f"message {number} of `{key}`"
        if not isinstance(message, Mapping):
            raise DocumentError("wrong_type", f"{where} must be an object, found {type(message).__name__}.")
        role = message.get(role_key)
        if not isinstance(role, str) or role not in ROLES:
            raise DocumentError("unknown_role", f"{where} has the unknown role {role!r}.")
        turns.append(_turn(message, ROLES[role], content_key, where))
    return turns


def alternating(strings: Any, key: str) -> list[Turn]:
    """Return the turns of a list of strings, user first.

    Raises:
        DocumentError: it is no list of strings.
    """
    if not isinstance(strings, list) or not all(isinstance(item, str) for item in strings):
        raise DocumentError("wrong_type", f"`{key}` must be a list of strings.")
    return [Turn("assistant" if index % 2 else "user", content) for index, content in enumerate(strings)]


def _turn(message: Mapping[str, Any], role: str, content_key: str, where: str) -> Turn:
    calls = _calls(message, where) if role == "assistant" else ()
    content = message.get(content_key)
    if content is None and role == "assistant" and isinstance(message.get("refusal"), str):
        content = message["refusal"]
    if content is None and (calls or role == "tool"):
        content = ""
    if isinstance(content, list):
        content = _join_parts(content, where)
    elif not isinstance(content, str):
        content = text_of(message, content_key)  # raises, and says how
    name = message.get("name")
    return Turn(
        role,
        content,
        tool_calls=calls,
        trained=role != "assistant" or message.get("weight") != 0,
        name=name if role == "tool" and isinstance(name, str) else "",
    )


def _join_parts(parts: list[Any], where: str) -> str:
    """Return the text of a content in parts, one after another as they stand."""
    texts = []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        field = TEXT_PARTS.get(str(kind))
        if field is None:
            raise DocumentError(
                "unsupported_content", f"{where} holds a part of the type {kind!r}; only parts of text can be scored."
            )
        texts.append(text_of(part, field))
    return "".join(texts)


def _calls(message: Mapping[str, Any], where: str) -> tuple[dict[str, Any], ...]:
    """Return the tool calls of an assistant's message."""
    calls = message.get("tool_calls") or []
    if isinstance(calls, str):
        calls = parse_json(calls, where, "tool_calls")
    if message.get("function_call") and not calls:
        calls = [message["function_call"]]
    if not isinstance(calls, list):
        raise DocumentError("wrong_type", f"`tool_calls` of {where} must be a list, found {type(calls).__name__}.")
    found = []
    for call in calls:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise DocumentError("wrong_type", f"a tool call of {where} must name a function.")
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            with suppress(ValueError, RecursionError):  # else it stays the string that the model wrote
                arguments = json.loads(arguments)
        found.append({"name": function["name"], "arguments": {} if arguments is None else arguments})
    return tuple(found)


def parse_json(text: str, where: str, key: str) -> Any:
    """Return the value of a column that holds JSON as a string, as Parquet data sets often do.

    Raises:
        DocumentError: it is no JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DocumentError("wrong_type", f"`{key}` of {where} is a string that is no JSON.") from error


def write_json(value: Any) -> str:
    """Return JSON as a model reads and writes it: characters as they are."""
    return json.dumps(value, ensure_ascii=False, default=str)
