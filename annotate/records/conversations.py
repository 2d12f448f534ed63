"""From records to conversations: the record formats, detected from the columns.

What enters: one record (a dict) of a known format. What leaves: a `Conversation`, or a `DocumentError` with a reason
code and a sentence, which becomes a line of `rejects.jsonl`. Next: `annotate.tokens.templates` renders segments.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from common.errors import UserError


class DocumentError(ValueError):
    """A record that cannot become a document."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Turn:
    """One message."""

    role: str  # "system", "user" or "assistant"
    content: str
    context: str = ""  # Alpaca's `input`, which some templates place by itself


@dataclass(frozen=True)
class Conversation:
    """Messages that end with a response; or plain text, all of which is supervised."""

    turns: list[Turn] = field(default_factory=list)
    text: str | None = None


# Names that the common datasets use for the three roles.
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
}


def _text(record: Mapping[str, Any], key: str, optional: bool = False) -> str:
    """Return a string of the record."""
    value = record.get(key)
    if value is None and optional:
        return ""
    if value is None:
        raise DocumentError("missing_field", f"`{key}` is missing.")
    if not isinstance(value, str):
        raise DocumentError("wrong_type", f"`{key}` must be a string, found {type(value).__name__}.")
    return value


def _turns(messages: Any, key: str, role_key: str, content_key: str) -> list[Turn]:
    """Return the turns of a list of messages."""
    if not isinstance(messages, list):
        raise DocumentError("wrong_type", f"`{key}` must be a list of messages, found {type(messages).__name__}.")
    turns = []
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise DocumentError(
                "wrong_type", f"message {number} of `{key}` must be an object, found {type(message).__name__}."
            )
        role = message.get(role_key)
        if not isinstance(role, str) or role not in ROLES:
            raise DocumentError("unknown_role", f"message {number} of `{key}` has the unknown role {role!r}.")
        turns.append(Turn(ROLES[role], _text(message, content_key)))
    return turns


def _alternating(strings: Any, key: str) -> list[Turn]:
    """Return the turns of a list of strings, user first."""
    if not isinstance(strings, list) or not all(isinstance(item, str) for item in strings):
        raise DocumentError("wrong_type", f"`{key}` must be a list of strings.")
    return [Turn("assistant" if index % 2 else "user", content) for index, content in enumerate(strings)]


def from_alpaca(record: Mapping[str, Any]) -> Conversation:
    """`instruction`, `input` (may be missing), `output`."""
    question = Turn("user", _text(record, "instruction"), _text(record, "input", optional=True))
    return Conversation([question, Turn("assistant", _text(record, "output"))])


def from_prompt_completion(record: Mapping[str, Any]) -> Conversation:
    """`prompt` and `completion` (or `response`): strings, or lists of messages."""
    key = "completion" if "completion" in record else "response"
    turns: list[Turn] = []
    for name, role in (("prompt", "user"), (key, "assistant")):
        if isinstance(record.get(name), list):
            turns += _turns(record[name], name, "role", "content")
        else:
            turns.append(Turn(role, _text(record, name)))
    return Conversation(turns)


def from_messages(record: Mapping[str, Any]) -> Conversation:
    """`messages` with `role` and `content`."""
    return Conversation(_turns(record.get("messages"), "messages", "role", "content"))


def from_sharegpt(record: Mapping[str, Any]) -> Conversation:
    """`conversations` with `from` and `value`."""
    return Conversation(_turns(record.get("conversations"), "conversations", "from", "value"))


def from_lima(record: Mapping[str, Any]) -> Conversation:
    """`conversations` as a list of strings; or `instruction`, `output` and the earlier turns in `history`."""
    if "conversations" in record:
        return Conversation(_alternating(record["conversations"], "conversations"))
    history = record.get("history") or []
    if not isinstance(history, list):
        raise DocumentError("wrong_type", f"`history` must be a list of pairs, found {type(history).__name__}.")
    turns: list[Turn] = []
    for pair in history:
        if not isinstance(pair, list) or len(pair) != 2:
            raise DocumentError("wrong_type", "`history` must hold pairs of question and answer.")
        turns += _alternating(pair, "history")
    return Conversation(turns + from_alpaca(record).turns)


def from_text(record: Mapping[str, Any]) -> Conversation:
    """`text`: everything is supervised."""
    text = _text(record, "text")
    if not text.strip():
        raise DocumentError("empty_response", "`text` is empty.")
    return Conversation(text=text)


FORMATS: dict[str, Callable[[Mapping[str, Any]], Conversation]] = {
    "alpaca": from_alpaca,
    "prompt_completion": from_prompt_completion,
    "messages": from_messages,
    "sharegpt": from_sharegpt,
    "lima": from_lima,
    "text": from_text,
}


def detect_format(records: list[Any], location: str) -> str:
    """Return the format of the first records, from their columns.

    Raises:
        UserError: no known column set is there.
    """
    mappings = [record for record in records if isinstance(record, Mapping)]
    columns = {name for record in mappings for name in record}
    if "messages" in columns:
        return "messages"
    if "conversations" in columns:
        lists = [record["conversations"] for record in mappings if record.get("conversations")]
        plain = any(isinstance(turns, list) and isinstance(turns[0], str) for turns in lists)
        return "lima" if plain else "sharegpt"
    if {"instruction", "output"} <= columns:
        return "lima" if "history" in columns else "alpaca"
    if "prompt" in columns and columns & {"completion", "response"}:
        return "prompt_completion"
    if "text" in columns:
        return "text"
    found = ", ".join(sorted(map(str, columns))) or "no columns"
    raise UserError(
        f"{location}: expected records with instruction/input/output, prompt/completion, messages, conversations or "
        f"text; found {found}. Rename the columns, or name the format with --format ({', '.join(FORMATS)})."
    )


def to_conversation(record: Any, format_name: str) -> Conversation:
    """Turn a record into a conversation that ends with a response.

    Raises:
        DocumentError: the record is no object, lacks a field, has a wrong type, an unknown role, no response or an
            empty one, or text that is not valid Unicode.
    """
    if not isinstance(record, Mapping):
        raise DocumentError("not_an_object", f"a record must be an object, found {type(record).__name__}.")
    conversation = FORMATS[format_name](record)
    parts = [conversation.text or ""] + [part for turn in conversation.turns for part in (turn.content, turn.context)]
    try:
        "".join(parts).encode()
    except UnicodeEncodeError as error:
        raise DocumentError("invalid_unicode", "the text holds a lone surrogate, which is no character.") from error
    if conversation.text is not None:
        return conversation
    responses = [turn for turn in conversation.turns if turn.role == "assistant"]
    if not responses or conversation.turns[-1].role != "assistant":
        raise DocumentError("missing_response", "the conversation does not end with a response.")
    if any(not turn.content.strip() for turn in responses):
        raise DocumentError("empty_response", "a response is empty.")
    return conversation
