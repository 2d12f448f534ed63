"""Differences from the baseline with their intervals, a row a point.

What enters: differences. What leaves: the rows of an HTML table with a picture in each, all on one scale.
"""

from collections.abc import Mapping, Sequence
from html import escape

from train.comparison.figures.svg import Scale, dot, line, padded, svg, text, tick_text
from train.comparison.pairing import Difference
from train.comparison.reports.numbers import difference_text, difference_unit, interval_text, p_words

ROW = 26.0
AXIS = 30.0
EDGE = 2.0  # percent of the width left free at both sides


def forest(differences: Sequence[Difference], classes: Mapping[str, str], against: str) -> str:
    """Return a table: the point, its difference as a mark with its interval, and the numbers."""
    known = [d for d in differences if d.estimate.difference is not None]
    if not known:
        return ""
    column = known[0].column
    ends = [v for d in known for v in (d.estimate.low, d.estimate.high, d.estimate.difference, 0.0)]
    low, high = padded([None if v is None else v * column.scale for v in ends])
    scale = Scale(low, high, EDGE, 100.0 - EDGE)
    rows = []
    for d in known:
        name = classes.get(d.point, "base")
        strength = "<b>" if d.holds else "<span>"
        rows.append(
            f'<tr><th scope="row"><span class="key {name}"></span>{escape(d.point)}</th>'
            f'<td class="picture">{_mark(d, scale, name)}</td>'
            f"<td "
            f'class="number">{strength}{difference_text(d.estimate.difference, column)}{strength.replace("<", "</")} '
            f'<span class="soft">{interval_text(d)}</span></td></tr>'
        )
    shown = scale.ticks(6)
    words = f"{column.title}, difference from {against}" + (f" ({difference_unit(column)})" if column.unit else "")
    better = "better to the right" if column.better == "higher" else "better to the left"
    marks = [line(scale(t), 0, scale(t), 5, "tick") + text(scale(t), 18, tick_text(t, shown), "axis") for t in shown]
    axis = svg(AXIS, [line(EDGE, 0.5, 100 - EDGE, 0.5, "tick"), *marks], words)
    return (
        f'<table class="forest"><caption class="spoken">{escape(words)}</caption><tbody>{"".join(rows)}</tbody>'
        f'<tfoot><tr><td></td><td class="picture">{axis}</td><td></td></tr>'
        f'<tr><td></td><td class="words">{escape(words)}; {better}</td><td></td></tr></tfoot></table>'
    )


def _mark(d: Difference, scale: Scale, name: str) -> str:
    e, column = d.estimate, d.column
    middle = ROW / 2
    parts = [line(scale(0.0), 0, scale(0.0), ROW, "zero")]
    tip = f"{d.point} − {d.against}, {column.title}: {difference_text(e.difference, column)} {interval_text(d)}"
    if d.p_holm is not None:
        tip += f", {p_words(e.p)}, corrected {p_words(d.p_holm)}"
    if e.low is not None:
        left, right = scale(e.low * column.scale), scale(e.high * column.scale)
        parts.append(line(left, middle, right, middle, f"whisker {name}"))
        parts += [line(x, middle - 4, x, middle + 4, f"whisker {name}") for x in (left, right)]
    parts.append(dot(scale(e.difference * column.scale), middle, 5, f"mark {name}", tip))
    return svg(ROW, parts, tip)
