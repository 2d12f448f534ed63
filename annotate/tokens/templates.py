"""Templates: from a conversation to the segments of a document.

What enters: a `Conversation`. What leaves: segments in order, each with its text and whether it is supervised; special
tokens are segments of their own, so that no text of a record can turn into one. Next: `annotate.tokens.target`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from annotate.records.conversations import Conversation, DocumentError, Turn
from common.errors import UserError


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
        elif turn.role == "system":
            pending += f"{turn.content}\n\n"
        else:
            pending += f"### Instruction:\n{turn.content}\n\n"
            pending += f"### Input:\n{turn.context}\n\n" if turn.context else ""
    return prompts


def plain_prompts(turns: list[Turn]) -> list[str]:
    """Return the text before each response in the form `User: …\\nAssistant: …` (paper appendix I).

    The space after `Assistant:` belongs to the prompt, so that the supervised tokens are exactly the response.
    """
    prompts, pending = [], ""
    for turn in turns:
        if turn.role == "assistant":
            prompts.append(f"{pending}Assistant: ")
            pending = "\n"
        else:
            name = "System" if turn.role == "system" else "User"
            context = f"\n{turn.context}" if turn.context else ""
            pending += f"{name}: {turn.content}{context}\n"
    return prompts


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
        return ChatTemplate(tokenizer)
    if name not in PROMPTS:
        raise UserError(f"--template {name}: expected one of {', '.join(TEMPLATES)}.")
    if tokenizer.eos_token is None:
        raise UserError("the tokenizer has no end-of-turn token (eos_token); set one, or use --template chat.")
    end_of_turn = Segment(tokenizer.eos_token, supervised=True, special=True)
    prompts = PROMPTS[name]

    def render(conversation: Conversation) -> list[Segment]:
        if conversation.text is not None:
            return [Segment(conversation.text, supervised=True), end_of_turn]
        responses = [turn.content for turn in conversation.turns if turn.role == "assistant"]
        segments = []
        for prompt, response in zip(prompts(conversation.turns), responses, strict=True):
            segments += [Segment(prompt, supervised=False), Segment(response, supervised=True), end_of_turn]
        return segments

    return render


class ChatTemplate:
    """The tokenizer's own chat template.

    The assistant's part is known exactly in one of two ways. Where the template holds `{% generation %}` markers, they
    say it. Otherwise the conversation is rendered up to each response with the generation prompt, and up to and with
    the response: the difference is the assistant's part when the one starts with the other and both with the final text
    agree; when they do not, the record or the template is refused rather than guessed.

    Of the assistant's part, everything through the first special token after the response (the end-of-turn token) is
    supervised; what follows it, such as a line break, is not.
    """

    def __init__(self, tokenizer: Any):
        if not tokenizer.chat_template:
            raise UserError(
                "--template chat: the tokenizer has no chat template. Use --template alpaca or plain, or a tokenizer "
                "directory whose chat_template.jinja holds {% generation %} markers."
            )
        self.tokenizer = tokenizer
        self.has_markers = re.search(r"\{%-?\s*generation\b", str(tokenizer.chat_template)) is not None
        specials = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        self.specials = specials
        ordered = sorted(specials, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, ordered))) if ordered else None
        if not self.has_markers:
            self._check_prefixes()

    def _check_prefixes(self) -> None:
        """Refuse at once a template for which the exact way without markers does not work."""
        probe = [Turn("user", "a b"), Turn("assistant", "c d"), Turn("user", "e f"), Turn("assistant", "g h")]
        try:
            self(Conversation(probe))
        except DocumentError as error:
            raise UserError(
                f"--template chat: the tokenizer's chat template has no {{% generation %}} markers, and {error} "
                "Add the markers around the assistant's content and end-of-turn token, or use --template plain."
            ) from error

    def __call__(self, conversation: Conversation) -> list[Segment]:
        if conversation.text is not None:
            raise DocumentError("wrong_type", "--template chat needs messages; the record is plain text.")
        messages = []
        for turn in conversation.turns:
            content = f"{turn.content}\n{turn.context}" if turn.context else turn.content
            messages.append({"role": turn.role, "content": content})
        try:
            rendered, spans = self._with_markers(messages) if self.has_markers else self._by_prefixes(messages)
        except DocumentError:
            raise
        except Exception as error:  # a template raises for roles or orders that it does not allow
            raise DocumentError("template_error", f"the chat template refuses the conversation: {error}") from error
        return self._segments(rendered, spans)

    def _render(self, messages: list[dict[str, str]], prompt: bool = False) -> str:
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)

    def _with_markers(self, messages: list[dict[str, str]]) -> tuple[str, list[tuple[int, int]]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        rendered, spans = render_jinja_template(
            [messages],
            chat_template=self.tokenizer.chat_template,
            return_assistant_tokens_mask=True,
            **self.tokenizer.special_tokens_map,
        )
        return rendered[0], [(start, end) for start, end in spans[0]]

    def _by_prefixes(self, messages: list[dict[str, str]]) -> tuple[str, list[tuple[int, int]]]:
        whole, spans = self._render(messages), []
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before, through = self._render(messages[:index], prompt=True), self._render(messages[: index + 1])
            if not (through.startswith(before) and whole.startswith(through)):
                raise DocumentError(
                    "template_error",
                    "the assistant's tokens cannot be told exactly: an earlier part is rendered differently later on.",
                )
            spans.append((len(before), len(through)))
        return whole, spans

    def _segments(self, rendered: str, spans: list[tuple[int, int]]) -> list[Segment]:
        segments, end_of_last = [], 0
        for start, end in spans:
            segments += self._split(rendered[end_of_last:start], supervised=False)
            inside = self._split(rendered[start:end], supervised=True)
            stop = next((i for i, segment in enumerate(inside) if segment.special), len(inside) - 1)
            segments += inside[: stop + 1]
            segments += [Segment(part.text, False, part.special) for part in inside[stop + 1 :]]
            end_of_last = end
        return segments + self._split(rendered[end_of_last:], supervised=False)

    def _split(self, text: str, supervised: bool) -> list[Segment]:
        """Cut the special tokens out of a rendered text."""
        pieces, at = [], 0
        for match in self.pattern.finditer(text) if self.pattern else ():
            if match.start() > at:
                pieces.append(Segment(text[at : match.start()], supervised))
            pieces.append(Segment(match.group(), supervised, special=True))
            at = match.end()
        if at < len(text):
            pieces.append(Segment(text[at:], supervised))
        return pieces
