"""Figures 1 and 2: training loss by group over the steps, mean ± sd over seeds, and which group was the worst.

What enters: a point's `Curves`. What leaves: a panel; below the curves a strip that is dark where the important group
was the worst one. The script shows the numbers at a step, by pointer or by arrow keys; they lie in the panel's data.
"""

import json
from collections.abc import Mapping
from html import escape

from train.comparison.comparison import Comparison
from train.comparison.figures.svg import (
    WIDE,
    Scale,
    band,
    line,
    padded,
    path,
    rectangle,
    stretched,
    svg,
    text,
    tick_text,
)
from train.comparison.reading.curves import Curve, Curves
from train.comparison.reports.numbers import plain

HEIGHT, TOP, BOTTOM, STRIP, LEFT, RIGHT = 210.0, 8.0, 44.0, 7.0, 11.0, 99.0
DASHES = {"unimportant": "second"}
DIGITS = 4


def curve_panels(comparison: Comparison, classes: Mapping[str, str]) -> list[str]:
    """Return a panel for every point with curves, all on one scale of losses."""
    shown = [(point, comparison.curves[point.name]) for point in comparison.points if point.name in comparison.curves]
    shown = [(point, curves) for point, curves in shown if curves.steps]
    low, high = padded([v for _, curves in shown for c in curves.lines for v in _ends(c)], 0.03)
    return [_panel(point.name, curves, classes[point.name], low, high) for point, curves in shown]


def legend(comparison: Comparison) -> str:
    """Return what line, dash and strip mean, beside a sample of each."""
    labels = list(dict.fromkeys(c.label for curves in comparison.curves.values() for c in curves.lines))
    dash = {label: f"curve {DASHES.get(label, '')}" for label in labels}
    small = '<span><svg width="30" height="10" aria-hidden="true">'
    samples = [f"{small}{line('0', 5, '30', 5, dash[label])}</svg>{escape(label)}</span>" for label in labels]
    if any(curves.worst_important for curves in comparison.curves.values()):
        box = rectangle(0, 2, 100, 2 + STRIP, "strip")
        samples.append(f"{small}{box}</svg>important is the worst group</span>")
    return f'<p class="legend base">{"".join(samples)}</p>'


def switches_text(curves: Curves) -> str:
    """Return how often the worst group changed, over the runs that say it."""
    known = [s for s in curves.switches if s]
    if not known:
        return ""
    counts = [s["count"] for s in known]
    shares = [s["share_of_steps"] for s in known]
    spread = f" ({min(counts)} to {max(counts)})" if len(counts) > 1 and min(counts) != max(counts) else ""
    return (
        f"worst group switched {plain(sum(counts) / len(counts), 1)} times{spread}, "
        f"in {plain(100 * sum(shares) / len(shares), 1)} % of steps"
    )


def _panel(name: str, curves: Curves, colour: str, low: float, high: float) -> str:
    up = Scale(low, high, HEIGHT - BOTTOM, TOP)
    first, last = curves.steps[0], curves.steps[-1]
    across = Scale(first, last, LEFT, RIGHT)
    inner = Scale(first, last, 0.0, WIDE)
    shown_y = up.ticks(6)
    parts = [line(LEFT, up(v), RIGHT, up(v), "grid") for v in shown_y]
    parts += [text(LEFT - 1.0, up(v) + 4, tick_text(v, shown_y), "axis", "end") for v in shown_y]
    shown_x = [v for v in across.ticks(5) if v == int(v)]
    parts += [text(across(v), HEIGHT - 18, tick_text(v, shown_x), "axis") for v in shown_x]
    parts.append(text((LEFT + RIGHT) / 2, HEIGHT - 3, "optimizer step", "axis words"))
    drawn = []
    for curve in curves.lines:
        where = list(zip(curves.steps, curve.mean, curve.sd, strict=True))
        kind = f"{colour.split()[0]} {DASHES.get(curve.label, '')}".strip()
        drawn.append(
            band(
                [None if m is None or s is None else (inner(x), up(m - s), up(m + s)) for x, m, s in where],
                f"band {kind}",
            )
        )
        drawn.append(path([None if m is None else (inner(x), up(m)) for x, m, _ in where], f"curve {kind}"))
    parts += [stretched(LEFT, RIGHT, HEIGHT, drawn), _strip(curves, across, colour)]
    parts.append(line("0", 0, "0", HEIGHT - BOTTOM, "cross"))
    data = {
        "steps": curves.steps,
        "left": LEFT,
        "right": RIGHT,
        "lines": [[c.label, _short(c.mean), _short(c.sd)] for c in curves.lines],
        "worst": [None if v is None else round(v, 2) for v in curves.worst_important],
    }
    said = [f"{curves.num_seeds} seed{'s' if curves.num_seeds != 1 else ''}", switches_text(curves)]
    if curves.num_non_finite:
        said.append(f"NaN in {curves.num_non_finite} of {curves.num_seeds} runs: the curve ends where the first begins")
    label = f"{name}: training loss by group over {last} steps. " + "; ".join(filter(None, said))
    hook = f"tabindex=\"0\" data-curves='{json.dumps(data, separators=(',', ':'))}'"
    return (
        f'<figure class="panel"><h4 class="{colour}">{escape(name)}</h4>{svg(HEIGHT, parts, label, "curves", hook)}'
        f"<figcaption>{escape('; '.join(filter(None, said)))}</figcaption></figure>"
    )


def _strip(curves: Curves, across: Scale, colour: str) -> str:
    """Return boxes for stretches of steps with one share of seeds whose worst group is the important one."""
    if not curves.worst_important:
        return ""
    y = HEIGHT - BOTTOM + 4
    edges = [
        curves.steps[0],
        *[(a + b) / 2 for a, b in zip(curves.steps, curves.steps[1:], strict=False)],
        curves.steps[-1],
    ]
    boxes, start = [], 0
    shares = [None if v is None else round(v, 1) for v in curves.worst_important]
    for index in range(1, len(shares) + 1):
        if index < len(shares) and shares[index] == shares[start]:
            continue
        if shares[start]:
            style = f"opacity:{shares[start]:g}"
            boxes.append(
                rectangle(across(edges[start]), y, across(edges[index]), y + STRIP, f"strip {colour}", "", style)
            )
        start = index
    return rectangle(LEFT, y, RIGHT, y + STRIP, "strip none") + "".join(boxes)


def _ends(curve: Curve) -> list[float | None]:
    return [v for m, s in zip(curve.mean, curve.sd, strict=True) if m is not None for v in (m - (s or 0), m + (s or 0))]


def _short(values: list[float | None]) -> list[float | None]:
    return [None if value is None else round(value, DIGITS) for value in values]
