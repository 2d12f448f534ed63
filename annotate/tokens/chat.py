"""The template `chat`: the tokenizer's own, with the assistant's tokens told exactly or not at all.

What enters: a `Conversation`. What leaves: segments, as from the other templates. Next: `annotate.tokens.target`.
"""

import re
from typing import Any

from annotate.records.conversations import Conversation, DocumentError, Turn
from annotate.tokens.templates import Segment
from common.errors import UserError


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
        self.source = str(tokenizer.chat_template)
        self.has_markers = re.search(r"\{%-?\s*generation\b", self.source) is not None
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
        messages = [_message(turn) for turn in conversation.turns]
        tools = list(conversation.tools)
        self._require_known(conversation)
        try:
            find = self._with_markers if self.has_markers else self._by_prefixes
            rendered, spans = find(messages, tools)
        except DocumentError:
            raise
        except Exception as error:  # a template raises for roles or orders that it does not allow
            raise DocumentError("template_error", f"the chat template refuses the conversation: {error}") from error
        responses = [turn for turn in conversation.turns if turn.role == "assistant"]
        trained = [turn.trained for turn in responses]
        if not all(trained) and len(trained) != len(spans):
            raise DocumentError("template_error", "which of the template's parts has the weight 0 cannot be told.")
        return self._segments(rendered, spans, trained if len(trained) == len(spans) else [True] * len(spans))

    def _require_known(self, conversation: Conversation) -> None:
        """Refuse what the template would leave out without a word."""
        uses = {"tool_calls": any(turn.tool_calls for turn in conversation.turns), "tools": bool(conversation.tools)}
        for name, used in uses.items():
            if used and not re.search(rf"\b{name}\b", self.source):
                raise DocumentError(
                    "template_error", f"the record has `{name}`, which the chat template does not show."
                )

    def _render(self, messages: list[dict[str, Any]], tools: list[Any], prompt: bool = False) -> str:
        return self.tokenizer.apply_chat_template(
            messages, tools=tools or None, tokenize=False, add_generation_prompt=prompt
        )

    def _with_markers(self, messages: list[dict[str, Any]], tools: list[Any]) -> tuple[str, list[tuple[int, int]]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        rendered, spans = render_jinja_template(
            [messages],
            tools=tools or None,
            chat_template=self.tokenizer.chat_template,
            return_assistant_tokens_mask=True,
            **self.tokenizer.special_tokens_map,
        )
        return rendered[0], [(start, end) for start, end in spans[0]]

    def _by_prefixes(self, messages: list[dict[str, Any]], tools: list[Any]) -> tuple[str, list[tuple[int, int]]]:
        whole, spans = self._render(messages, tools), []
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before, through = (
                self._render(messages[:index], tools, prompt=True),
                self._render(messages[: index + 1], tools),
            )
            if not (through.startswith(before) and whole.startswith(through)):
                raise DocumentError(
                    "template_error",
                    "the assistant's tokens cannot be told exactly: an earlier part is rendered differently later on.",
                )
            spans.append((len(before), len(through)))
        return whole, spans

    def _segments(self, rendered: str, spans: list[tuple[int, int]], trained: list[bool]) -> list[Segment]:
        segments, end_of_last = [], 0
        for (start, end), supervised in zip(spans, trained, strict=True):
            segments += self._split(rendered[end_of_last:start], supervised=False)
            inside = self._split(rendered[start:end], supervised=supervised)
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


def _message(turn: Turn) -> dict[str, Any]:
    """Return a message in the form that chat templates take."""
    message: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.context:
        message["content"] += f"\n{turn.context}"
    if turn.tool_calls:
        message["tool_calls"] = [{"type": "function", "function": dict(call)} for call in turn.tool_calls]
    if turn.name:
        message["name"] = turn.name
    return message
