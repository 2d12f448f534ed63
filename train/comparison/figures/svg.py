"""A small writer of SVG for pages: text keeps its size at any width, colours are the page's own, every mark says its
value.

What enters: numbers. What leaves: SVG text for a figure that is as wide as its place: positions along the width are
percentages, along the height pixels. Lines of data lie in a nested picture that is stretched; its strokes are not.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

WIDE = 1000.0  # the width of the stretched picture, in its own units


@dataclass(frozen=True)
class Scale:
    """From values to a place between `start` and `stop`."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        """Return where a value lies."""
        share = 0.5 if self.high == self.low else (value - self.low) / (self.high - self.low)
        return self.start + share * (self.stop - self.start)

    def ticks(self, most: int = 5) -> list[float]:
        """Return round numbers within, at most so many."""
        return ticks(self.low, self.high, most)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return round numbers from low to high: steps of 1, 2, 2.5 or 5 times a power of ten."""
    span = high - low
    if not math.isfinite(span) or span <= 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(s for m in (1, 2, 2.5, 5, 10, 20) if span / (s := m * power) <= most)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_text(value: float, shown: Sequence[float]) -> str:
    """Return a tick's number, with as many digits as its neighbours need."""
    step = min((abs(b - a) for a, b in pairwise(shown)), default=1.0)
    digits = max(0, -math.floor(math.log10(step) + 1e-9)) if step else 0
    if step and abs(step * 10**digits - round(step * 10**digits)) > 1e-6:
        digits += 1
    return f"{value:,.{digits}f}".replace("-", "−")


def padded(values: Iterable[float | None], share: float = 0.06) -> tuple[float, float]:
    """Return the range of values and a little more; 0 to 1 where there are none."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return 0.0, 1.0
    low, high = min(known), max(known)
    room = (high - low) * share or abs(high) * 0.05 or 1.0
    return low - room, high + room


def svg(height: float, content: Iterable[str], label: str, name: str = "", attributes: str = "") -> str:
    """Return a figure as wide as its place; `label` is what it shows, for those who do not see it."""
    return (
        f'<svg class="{name}" width="100%" height="{height:g}" role="img" aria-label="{escape(label)}" {attributes}>'
        + "".join(content)
        + "</svg>"
    )


def line(x1: str | float, y1: float, x2: str | float, y2: float, name: str) -> str:
    """Return a straight line; x as percentages of the width (numbers) or as given."""
    return f'<line class="{name}" x1="{_x(x1)}" y1="{y1:.1f}" x2="{_x(x2)}" y2="{y2:.1f}"/>'


def text(x: str | float, y: float, words: str, name: str = "", anchor: str = "middle") -> str:
    """Return words."""
    return f'<text class="{name}" x="{_x(x)}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def dot(x: float, y: float, radius: float, name: str, tip: str = "") -> str:
    """Return a mark that says its value when it is pointed at."""
    inner = f"<title>{escape(tip)}</title>" if tip else ""
    return f'<circle class="{name}" cx="{_x(x)}" cy="{y:.1f}" r="{radius:g}">{inner}</circle>'


def rectangle(x1: float, y1: float, x2: float, y2: float, name: str, tip: str = "", style: str = "") -> str:
    """Return a filled box."""
    inner = f"<title>{escape(tip)}</title>" if tip else ""
    style = f' style="{style}"' if style else ""
    return (
        f'<rect class="{name}" x="{_x(x1)}" y="{y1:.1f}" width="{_x(max(x2 - x1, 0.0))}" '
        f'height="{max(y2 - y1, 0.0):.1f}"'
        f"{style}>{inner}</rect>"
    )


def stretched(left: float, right: float, height: float, content: Iterable[str]) -> str:
    """Return a picture from left to right (percentages), the content of which is in 0…WIDE by 0…height."""
    return (
        f'<svg x="{_x(left)}" y="0" width="{_x(right - left)}" height="{height:g}" viewBox="0 0 {WIDE:g} {height:g}" '
        'preserveAspectRatio="none">' + "".join(content) + "</svg>"
    )


def path(points: Sequence[tuple[float, float] | None], name: str) -> str:
    """Return a line through points; None interrupts it."""
    commands, pen_down = [], False
    for point in points:
        if point is None:
            pen_down = False
            continue
        commands.append(f"{'L' if pen_down else 'M'}{point[0]:.0f} {point[1]:.1f}")
        pen_down = True
    return f'<path class="{name}" vector-effect="non-scaling-stroke" d="{"".join(commands)}"/>' if commands else ""


def band(points: Sequence[tuple[float, float, float] | None], name: str) -> str:
    """Return the areas between two lines through (x, low, high); None interrupts them."""
    pieces: list[list[tuple[float, float, float]]] = [[]]
    for point in points:
        if point is None:
            pieces.append([])
        else:
            pieces[-1].append(point)
    areas = []
    for piece in pieces:
        if len(piece) > 1:
            there = [f"{x:.0f} {high:.1f}" for x, _, high in piece]
            back = [f"{x:.0f} {low:.1f}" for x, low, _ in reversed(piece)]
            areas.append("M" + "L".join([*there, *back]) + "Z")
    return f'<path class="{name}" d="{"".join(areas)}"/>' if areas else ""


def _x(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.2f}%"
