"""Tokens on a terminal: shaded by a value, underlined where they are important.

What enters: a view's document and a shade for each token. What leaves: a text of rich's, for its console.
"""

from typing import Any

import numpy as np
from rich.style import Style
from rich.text import Text


def coloured(
    document: dict[str, Any], shades: np.ndarray, supervised: np.ndarray, important: np.ndarray, in_colour: bool
) -> Text:
    """Return a document's text with its tokens shaded; without colours, important ones stand in [[brackets]].

    Args:
        document: a view's document (`common.viewer.page`): its text, and its tokens' texts and characters.
        shades: float [num_tokens], from 0 to 1; below 0 it is the other hue, as of a loss that fell.
        supervised: bool [num_tokens]; the others are dim.
        important: bool [num_tokens]; underlined.
        in_colour: whether the terminal shows colours.
    """
    tokens, text = document["tokens"], document["text"]
    result, covered = Text(), 0
    for index, (start, end) in enumerate(zip(tokens["start"], tokens["end"], strict=True)):
        result.append(text[covered:start])  # characters that no token has
        piece = tokens["text"][index] if start == end else text[max(start, covered) : end]
        covered = max(covered, end)
        if in_colour:
            result.append(piece, style=_style(shades[index], bool(supervised[index]), bool(important[index])))
        else:
            result.append(f"[[{piece}]]" if important[index] and piece else piece)
    result.append(text[covered:])
    return result


def ranks(scores: np.ndarray, supervised: np.ndarray) -> np.ndarray:
    """Return for each supervised token the share of the others that score lower, ties counting half; 0 elsewhere."""
    result = np.zeros(len(scores))
    selected = scores[supervised]
    if selected.size > 1:
        _, inverse, counts = np.unique(selected, return_inverse=True, return_counts=True)
        middle = np.cumsum(counts) - (counts + 1) / 2
        result[supervised] = middle[inverse] / (selected.size - 1)
    return result


def _style(shade: float, supervised: bool, important: bool) -> Style:
    """Return a token's style; both colours are set, so that it can be read on any background."""
    if not supervised:
        return Style(dim=True)
    white, hue = np.array([255, 252, 245]), np.array([76, 181, 163] if shade < 0 else [255, 166, 43])
    red, green, blue = (white + (hue - white) * abs(shade)).astype(int)
    return Style(color="#1d1f24", bgcolor=f"#{red:02x}{green:02x}{blue:02x}", bold=important, underline=important)
