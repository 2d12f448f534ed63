"""Cutting long documents into several (`--overlong split`) instead of dropping their ends.

What enters: a document's segments. What leaves: the segments of its pieces; joined, they are the document again:
nothing is repeated, left out or added (the target tokenizer's prefix comes before each piece, as before any document).
Next: `annotate.tokens.target`.

A piece ends at the last border in its room that there is, of the best kind that there is: before a turn (after an
end-of-turn token), after a sentence or a line, before a word, after any token.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

from annotate.tokens.target import TargetTokenizer
from annotate.tokens.templates import Segment

# The end of a sentence: its mark, closing quotes and brackets, then white space or a script without spaces; or a line.
SENTENCE = re.compile(r"""[.!?…]+["'”’)\]]*(?=\s)|[。！？]+["'”’）」』]*|\n+""")
WORD = re.compile(r"\S(?=\s)")


def split_document(document: Sequence[Segment], target: TargetTokenizer, max_length: int) -> list[list[Segment]]:
    """Return the pieces of a document, each of at most `max_length` tokens, prefix included; itself when it fits.

    Pieces without a supervised token are among them: they hold what comes before.
    """
    room = max_length - len(target.prefix)
    left = list(document)
    starts_with_prefix = target.starts_with_prefix(document)
    lengths = [_count(segment, target) for segment in left]
    pieces: list[list[Segment]] = []
    while left:
        space = max_length if starts_with_prefix and not pieces else room
        if sum(lengths) <= space:
            pieces.append(left)
            break
        number, used = 0, 0  # whole segments that fit
        while used + lengths[number] <= space:
            used += lengths[number]
            number += 1
        turn = _last_turn(left[:number])
        if turn:
            pieces.append(left[:turn])
            left, lengths = left[turn:], lengths[turn:]
            continue
        space -= used
        if number and left[number].special and left[number].supervised:
            # An end-of-turn token never stands alone: the end of its response goes with it into the next piece.
            number -= 1
            space = lengths[number] - 1
        at = _last_border(left[number], target, space, number > 0)
        head, rest = _cut(left[number], at)
        pieces.append([*left[:number], *head])
        left = [*rest, *left[number + 1 :]]
        lengths = [*(_count(segment, target) for segment in rest), *lengths[number + 1 :]]
    return pieces


def _count(segment: Segment, target: TargetTokenizer) -> int:
    return 1 if segment.special else len(target.backend.encode(segment.text, add_special_tokens=False))


def _last_turn(segments: Sequence[Segment]) -> int:
    """Return the end of the last response that is followed by something, or 0."""
    ends = [number + 1 for number, segment in enumerate(segments) if segment.special and segment.supervised]
    return ends[-1] if ends else 0


def _last_border(segment: Segment, target: TargetTokenizer, room: int, may_be_empty: bool) -> int:
    """Return how many characters of a segment fit into `room` tokens, up to the best border.

    A special token, and where nothing else is in the piece at least one token, does not count as fitting.
    """
    if segment.special:
        return 0
    encoding = target.backend.encode(segment.text, add_special_tokens=False)
    most = max((end for _, end in encoding.offsets[:room]), default=0)
    if most == 0 and may_be_empty:
        return 0
    # The border itself may be the first character that does not fit any more.
    window = segment.text[: most + 1]
    for pattern in (SENTENCE, WORD):
        ends = [match.end() for match in pattern.finditer(window) if 0 < match.end() <= most]
        for end in reversed(ends):
            if len(target.backend.encode(segment.text[:end], add_special_tokens=False)) <= room:
                return end
    # Any character: cut off from what follows it, a text may have more tokens than within it.
    while most > 1 and len(target.backend.encode(segment.text[:most], add_special_tokens=False)) > room:
        most -= 1
    return max(1, most)


def _cut(segment: Segment, at: int) -> tuple[list[Segment], list[Segment]]:
    """Return the two sides of a segment, each without empty segments."""
    sides = replace(segment, text=segment.text[:at]), replace(segment, text=segment.text[at:])
    if segment.special:
        return [], [segment]
    return [side for side in sides[:1] if side.text], [side for side in sides[1:] if side.text]
