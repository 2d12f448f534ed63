"""Templates: from a conversation to the segments of a document.

What enters: a `Conversation`. What leaves: segments in order, each with its text and whether it is supervised; special
tokens are segments of their own, so that no text of a record can turn into one. Next: `annotate.tokens.target`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from annotate.records.conversations import Conversation, Turn
from annotate.records.messages import write_json
from common.errors import UserError
from common.hints import did_you_mean


@dataclass(frozen=True)
class Segment:
    """A piece of a document that is tokenized by itself."""

    text: str
    supervised: bool
    special: bool = False  # the text is one special token of the target tokenizer; it has no characters in the document


Template = Callable[[Conversation], list[Segment]]

ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
)
ALPACA_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
)


def alpaca_prompts(turns: list[Turn]) -> list[str]:
    """Return the text before each response, in the form of Stanford Alpaca.

    The introduction stands once, at the start; a system message takes its place. A line break follows `### Response:`,
    as in most later code (the first release had none).
    """
    prompts, pending = [], ""
    if turns[0].role != "system":
        first_user = next((turn for turn in turns if turn.role == "user"), None)
        pending = ALPACA_WITH_INPUT if first_user is not None and first_user.context else ALPACA_WITHOUT_INPUT
    for turn in turns:
        if turn.role == "assistant":
            prompts.append(f"{pending}### Response:\n")
            pending = "\n\n"
        elif turn.role == "tool":
            pending += f"### Tool{f' {turn.name}' if turn.name else ''}:\n{turn.content}\n\n"
        elif turn.role == "system":
            pending += f"{turn.content}\n\n"
        else:
            pending += f"### Instruction:\n{turn.content}\n\n"
            pending += f"### Input:\n{turn.context}\n\n" if turn.context else ""
    return prompts


def plain_prompts(turns: list[Turn]) -> list[str]:
    r"""Return the text before each response in the form `User: …\nAssistant: …` (paper appendix I).

    The space after `Assistant:` belongs to the prompt, so that the supervised tokens are exactly the response.
    """
    prompts, pending = [], ""
    for turn in turns:
        if turn.role == "assistant":
            prompts.append(f"{pending}Assistant: ")
            pending = "\n"
        else:
            name = {"system": "System", "tool": f"Tool {turn.name}".strip()}.get(turn.role, "User")
            context = f"\n{turn.context}" if turn.context else ""
            pending += f"{name}: {turn.content}{context}\n"
    return prompts


def response_text(turn: Turn) -> str:
    """Return what the assistant writes: its text, then each tool call in the form that most open models are taught.

    <tool_call>
    {"name": "add", "arguments": {"a": 1, "b": 2}}
    </tool_call>
    """
    calls = [f"<tool_call>\n{write_json(call)}\n</tool_call>" for call in turn.tool_calls]
    return "\n".join([turn.content, *calls] if turn.content else calls) if calls else turn.content


def with_tools(conversation: Conversation) -> list[Turn]:
    """Return the turns, the descriptions of the tools at the end of the system message."""
    turns = list(conversation.turns)
    if conversation.tools:
        described = "Tools:\n" + "\n".join(map(write_json, conversation.tools))
        has_system = turns[0].role == "system"
        content = f"{turns[0].content}\n\n{described}" if has_system else described
        turns[: int(has_system)] = [Turn("system", content)]
    return turns


PROMPTS: dict[str, Callable[[list[Turn]], list[str]]] = {"alpaca": alpaca_prompts, "plain": plain_prompts}
TEMPLATES = (*PROMPTS, "chat")


def default_template(format_name: str) -> str:
    """Return the template of `--template` when none is given: `alpaca` for Alpaca records, else `plain`."""
    return "alpaca" if format_name == "alpaca" else "plain"


def make_template(name: str, tokenizer: Any) -> Template:
    """Return the template of this name for the target tokenizer.

    Raises:
        UserError: unknown name, no end-of-turn token, or a chat template that does not tell the assistant's tokens.
    """
    if name == "chat":
        from annotate.tokens.chat import ChatTemplate

        return ChatTemplate(tokenizer)
    if name not in PROMPTS:
        raise UserError(f"--template {name}: expected one of {', '.join(TEMPLATES)}.{did_you_mean(name, TEMPLATES)}")
    if tokenizer.eos_token is None:
        raise UserError("the tokenizer has no end-of-turn token (eos_token); set one, or use --template chat.")
    end_of_turn = Segment(tokenizer.eos_token, supervised=True, special=True)
    prompts = PROMPTS[name]

    def render(conversation: Conversation) -> list[Segment]:
        if conversation.text is not None:
            return [Segment(conversation.text, supervised=True), end_of_turn]
        turns = with_tools(conversation)
        responses = [turn for turn in turns if turn.role == "assistant"]
        segments = []
        for prompt, turn in zip(prompts(turns), responses, strict=True):
            response = Segment(response_text(turn), supervised=turn.trained)
            segments += [Segment(prompt, supervised=False), response, replace(end_of_turn, supervised=turn.trained)]
        return segments

    return render
