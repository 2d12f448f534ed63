"""Cutting a document's text far behind its last token, before it is tokenized.

What enters: a document's segments. What leaves: the same, or a beginning of them that gives the same first `max_length`
tokens. A record of 50 MB is cut at 4,096 tokens; tokenizing all of it would take gigabytes and minutes.

A beginning is taken when its tokens stand the test: those that are kept end well before its end (two words, or where a
text has no words as many as `MARGIN_TOKENS` tokens), since merges and word borders see a few characters ahead; and a
beginning of twice the length gives the same ones.
"""

from collections.abc import Sequence
from dataclasses import replace

from annotate.tokens.target import TargetTokenizer
from annotate.tokens.templates import Segment

LONG_CHARACTERS = 1 << 17  # shorter documents are tokenized whole
HEAD_CHARACTERS = 1 << 15
CHARACTERS_A_TOKEN = 8  # more than nearly all texts have; others need a second look
MARGIN_TOKENS = 1024


def shorten(document: Sequence[Segment], target: TargetTokenizer, max_length: int) -> Sequence[Segment]:
    """Return segments that give the document's first `max_length` tokens, and at least one more where it has more."""
    if sum(len(segment.text) for segment in document) <= LONG_CHARACTERS:
        return document
    left = max_length - (0 if target.starts_with_prefix(document) else len(target.prefix))
    kept: list[Segment] = []
    for segment in document:
        if left < 0:
            break
        if segment.special:
            kept.append(segment)
            left -= 1
            continue
        text = head_of(segment.text, left, target)
        kept.append(replace(segment, text=text))
        if len(text) < len(segment.text):
            break
        left -= len(target.backend.encode(text, add_special_tokens=False)) if len(kept) < len(document) else 0
    return kept


def head_of(text: str, num_tokens: int, target: TargetTokenizer) -> str:
    """Return a beginning of a text that gives its first `num_tokens` + 1 tokens, or the text."""
    size = max(HEAD_CHARACTERS, CHARACTERS_A_TOKEN * num_tokens)
    while 2 * size < len(text):
        head = target.backend.encode(text[:size], add_special_tokens=False)
        if _num_safe(head.word_ids) > num_tokens:
            longer = target.backend.encode(text[: 2 * size], add_special_tokens=False)
            if longer.ids[: num_tokens + 1] == head.ids[: num_tokens + 1]:
                return text[:size]
        size *= 4
    return text


def _num_safe(words: Sequence[int | None]) -> int:
    """Return how many tokens stand before the last two words, or before the margin where there is only one word."""
    if not words:
        return 0
    last = words[-1] or 0
    before = sum(word is not None and word < last - 1 for word in words)
    return max(before, len(words) - MARGIN_TOKENS)
