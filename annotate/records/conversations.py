"""From records to conversations: the record formats, detected from the columns.

What enters: one record (a dict) of a known format. What leaves: a `Conversation`, or a `DocumentError` with a reason
code and a sentence, which becomes a line of `rejects.jsonl`. Next: `annotate.tokens.templates` renders segments.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from annotate.records.messages import DocumentError, Turn, alternating, parse_json, text_of, turns_of, write_json
from common.errors import UserError

__all__ = ["FORMATS", "MIXED", "Conversation", "DocumentError", "Turn", "detect_format", "to_conversation"]
MIXED = "mixed"  # each record by its own columns


@dataclass(frozen=True)
class Conversation:
    """Messages that end with a response; or plain text, all of which is supervised.

    Attributes:
        turns: the messages.
        text: the plain text.
        tools: descriptions of the tools that the assistant may call, as JSON values.
        dropped_turns: turns that were left out at the end, because no response follows them.
    """

    turns: list[Turn] = field(default_factory=list)
    text: str | None = None
    tools: tuple[Any, ...] = ()
    dropped_turns: int = 0


def from_alpaca(record: Mapping[str, Any]) -> Conversation:
    """`instruction`, `input` (may be missing), `output`."""
    question = Turn("user", text_of(record, "instruction"), text_of(record, "input", optional=True))
    return Conversation([question, Turn("assistant", text_of(record, "output"))])


def from_prompt_completion(record: Mapping[str, Any]) -> Conversation:
    """`prompt` and `completion` (or `response`): strings, or lists of messages."""
    key = "completion" if "completion" in record else "response"
    turns: list[Turn] = []
    for name, role in (("prompt", "user"), (key, "assistant")):
        if isinstance(record.get(name), list):
            turns += turns_of(record[name], name)
        else:
            turns.append(Turn(role, text_of(record, name)))
    return Conversation(turns, tools=_tools(record))


def from_messages(record: Mapping[str, Any]) -> Conversation:
    """`messages` with `role` and `content`, as OpenAI has them: `tool_calls`, `tools` and parts of content too."""
    return Conversation(turns_of(_list(record, "messages"), "messages"), tools=_tools(record))


def from_sharegpt(record: Mapping[str, Any]) -> Conversation:
    """`conversations` with `from` and `value` (or `role` and `content`), and perhaps `system`.

    Turns after the last response are dropped: many such data sets break off with a human turn.
    """
    messages = _list(record, "conversations")
    first = messages[0] if isinstance(messages, list) and messages else None
    keys = ("role", "content") if isinstance(first, Mapping) and "from" not in first else ("from", "value")
    turns = turns_of(messages, "conversations", *keys)
    system = text_of(record, "system", optional=True)
    if system.strip() and (not turns or turns[0].role != "system"):
        turns.insert(0, Turn("system", system))
    last = max((number for number, turn in enumerate(turns, start=1) if turn.role == "assistant"), default=len(turns))
    return Conversation(turns[:last], tools=_tools(record), dropped_turns=len(turns) - last)


def from_lima(record: Mapping[str, Any]) -> Conversation:
    """`conversations` as a list of strings; or `instruction`, `output` and the earlier turns in `history`."""
    if "conversations" in record:
        return Conversation(alternating(record["conversations"], "conversations"))
    history = record.get("history") or []
    if not isinstance(history, list):
        raise DocumentError("wrong_type", f"`history` must be a list of pairs, found {type(history).__name__}.")
    turns: list[Turn] = []
    for pair in history:
        if not isinstance(pair, list) or len(pair) != 2:
            raise DocumentError("wrong_type", "`history` must hold pairs of question and answer.")
        turns += alternating(pair, "history")
    return Conversation(turns + from_alpaca(record).turns)


def from_text(record: Mapping[str, Any]) -> Conversation:
    """`text`: everything is supervised."""
    text = text_of(record, "text")
    if not text.strip():
        raise DocumentError("empty_response", "`text` is empty.")
    return Conversation(text=text)


def _list(record: Mapping[str, Any], key: str) -> Any:
    """Return a list of messages, which may be stored as a string of JSON."""
    value = record.get(key)
    if value is None:
        raise DocumentError("missing_field", f"`{key}` is missing.")
    return parse_json(value, "the record", key) if isinstance(value, str) and value.startswith("[") else value


def _tools(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the record's `tools`, a list or one as a string of JSON."""
    tools = record.get("tools") or []
    tools = parse_json(tools, "the record", "tools") if isinstance(tools, str) else tools
    if not isinstance(tools, list):
        raise DocumentError("wrong_type", f"`tools` must be a list, found {type(tools).__name__}.")
    return tuple(tools)


FORMATS: dict[str, Callable[[Mapping[str, Any]], Conversation]] = {
    "alpaca": from_alpaca,
    "prompt_completion": from_prompt_completion,
    "messages": from_messages,
    "sharegpt": from_sharegpt,
    "lima": from_lima,
    "text": from_text,
    MIXED: lambda record: FORMATS[_own_format(record)](record),
}
NEEDED = {
    "messages": {"messages"},
    "sharegpt": {"conversations"},
    "alpaca": {"instruction", "output"},
    "prompt_completion": {"prompt", "completion"},
    "text": {"text"},
}


def _own_format(record: Mapping[str, Any]) -> str:
    name = format_of(record)
    if name is None:
        columns = ", ".join(sorted(str(key) for key, value in record.items() if value is not None)) or "no columns"
        raise DocumentError("unknown_format", f"no format has the columns of this record ({columns}).")
    return name


def format_of(record: Mapping[str, Any]) -> str | None:
    """Return the format of one record, from the columns that hold something; None where there is none."""
    columns = {name for name, value in record.items() if value is not None}
    if "messages" in columns:
        return "messages"
    if record.get("conversations"):
        turns = record["conversations"]
        return "lima" if isinstance(turns, list) and isinstance(turns[0], str) else "sharegpt"
    if {"instruction", "output"} <= columns:
        return "lima" if "history" in columns else "alpaca"
    if "prompt" in columns and columns & {"completion", "response"}:
        return "prompt_completion"
    return "text" if "text" in columns else None


def detect_format(records: list[Any], location: str) -> str:
    """Return the format of the first records, from their columns: `mixed` where they differ.

    Raises:
        UserError: no known column set is there.
    """
    mappings = [record for record in records if isinstance(record, Mapping)]
    found = {format_of(record) for record in mappings} - {None}
    if found == {"alpaca", "lima"}:
        return "lima"  # where there is no earlier turn, `history` may be left out
    if len(found) > 1:
        return MIXED
    if found:
        return str(found.pop())
    columns = {name for record in mappings for name in record}
    for name, needed in NEEDED.items():  # perhaps the first records are all incomplete
        if needed <= columns:
            return name
    named = ", ".join(sorted(map(str, columns))) or "no columns"
    raise UserError(
        f"{location}: expected records with instruction/input/output, prompt/completion, messages, conversations or "
        f"text; found {named}. Name the columns with --map (--map prompt=question --map completion=answer) or "
        f"--text-column, or the format with --format ({', '.join(FORMATS)})."
    )


def to_conversation(record: Any, format_name: str) -> Conversation:
    """Turn a record into a conversation that ends with a response.

    Raises:
        DocumentError: the record is no object, lacks a field, has a wrong type, an unknown role, no response or an
            empty one, or text that is not valid Unicode.
    """
    if not isinstance(record, Mapping):
        raise DocumentError("not_an_object", f"a record must be an object, found {type(record).__name__}.")
    try:
        conversation = FORMATS[format_name](record)
    except DocumentError as error:
        raise _with_hint(error, record, format_name) from error
    parts = [conversation.text or ""]
    for turn in conversation.turns:
        parts += [turn.content, turn.context, turn.name]
    for tools in (conversation.tools, *(turn.tool_calls for turn in conversation.turns)):
        if tools:  # few records have any, and writing takes longer than all else here
            parts.append(write_json(tools))
    try:
        for part in parts:
            part.encode()
    except UnicodeEncodeError as error:
        raise DocumentError("invalid_unicode", "the text holds a lone surrogate, which is no character.") from error
    if conversation.text is not None:
        return conversation
    responses = [turn for turn in conversation.turns if turn.role == "assistant"]
    if not responses or conversation.turns[-1].role != "assistant":
        raise DocumentError("missing_response", "the conversation does not end with a response.")
    if any(not turn.content.strip() and not turn.tool_calls for turn in responses):
        raise DocumentError("empty_response", "a response is empty.")
    return conversation


def _with_hint(error: DocumentError, record: Mapping[str, Any], format_name: str) -> DocumentError:
    """Say so where a record that fails has another format than the one it was read by."""
    own = format_of(record)
    if error.reason != "missing_field" or own in (None, format_name) or format_name == MIXED:
        return error
    return DocumentError(
        "other_format",
        f"{error} The record looks like {own}, not {format_name}; --format {MIXED} reads each by its own columns.",
    )
