"""Figure 3: a column over eta, with the baseline and the permuted control as bands.

What enters: a comparison. What leaves: one panel for every family of points that differ in nothing but eta, all on
one scale.
"""

from collections.abc import Mapping, Sequence
from html import escape

from train.comparison.comparison import Comparison
from train.comparison.figures.svg import (
    WIDE,
    Scale,
    band,
    dot,
    line,
    padded,
    path,
    rectangle,
    stretched,
    svg,
    text,
    tick_text,
)
from train.comparison.pairing import OF_LAMBDA, lambda_label
from train.comparison.reading.columns import Column
from train.comparison.reading.points import Point
from train.comparison.reading.settings import shown
from train.comparison.reports.numbers import summary_text, value_text
from train.comparison.statistics.seeds import Summary

HEIGHT, TOP, BOTTOM, LEFT = 230.0, 10.0, 34.0, 14.0  # pixels; LEFT in percent
OF_ETA = ("eta", "eval_eta", "permute_groups")


def eta_families(points: Sequence[Point]) -> list[list[Point]]:
    """Return groups of points that differ in nothing but eta, at least two of them, by rising eta."""
    families: dict[str, list[Point]] = {}
    for point in points:
        if point.settings.get("eta") is None or point.control_of or point.settings.get("permute_groups"):
            continue
        rest = {key: shown(value) for key, value in point.settings.items() if key not in OF_ETA}
        families.setdefault(repr(sorted(rest.items())), []).append(point)
    families_ = [sorted(family, key=lambda point: point.settings["eta"]) for family in families.values()]
    return [family for family in families_ if len({point.settings["eta"] for point in family}) > 1]


def eta_panels(comparison: Comparison, column: Column, classes: Mapping[str, str]) -> list[str]:
    """Return the panels of a column as HTML figures."""
    families = eta_families(comparison.points)
    controls = {point.control_of: point for point in comparison.points if point.control_of}
    shown_points = [
        p for family in families for p in (*family, *(controls[q.name] for q in family if q.name in controls))
    ]
    summaries = [comparison.summary(point, column) for point in (*shown_points, comparison.baseline)]
    ends = [v for s in summaries if s for v in (s.low, s.high, s.mean) if v is not None]
    if not families or not ends:
        return []
    low, high = padded([v * column.scale for v in ends])
    etas = [point.settings["eta"] for family in families for point in family]
    across = Scale(*padded(etas, 0.08), LEFT, 99.0)
    up = Scale(low, high, HEIGHT - BOTTOM, TOP)
    return [_panel(comparison, column, family, controls, classes, across, up) for family in families]


def _panel(
    comparison: Comparison,
    column: Column,
    family: Sequence[Point],
    controls: Mapping[str, Point],
    classes: Mapping[str, str],
    across: Scale,
    up: Scale,
) -> str:
    name = classes[family[0].name]
    parts = [_axes(across, up)]
    base = comparison.summary(comparison.baseline, column)
    if base is not None and base.mean is not None:
        words = f"{comparison.baseline.name}: {summary_text(base, column)}"
        if base.low is not None:
            parts.append(
                rectangle(LEFT, up(base.high * column.scale), 99.0, up(base.low * column.scale), "band base", words)
            )
        parts.append(line(LEFT, up(base.mean * column.scale), 99.0, up(base.mean * column.scale), "curve base"))
    inner = Scale(across.low, across.high, 0.0, WIDE)
    stretched_parts, marks = [], []
    own = [controls[point.name] for point in family if point.name in controls]
    for points, kind in ((own, f"{name} control"), (list(family), name)):
        values = [(point.settings["eta"], comparison.summary(point, column)) for point in points]
        places = [(x, s) for x, s in values if s is not None and s.mean is not None]
        if kind != name:
            stretched_parts.append(
                band(
                    [
                        (inner(x), up(s.low * column.scale), up(s.high * column.scale)) if s.low is not None else None
                        for x, s in places
                    ],
                    f"band {kind}",
                )
            )
        stretched_parts.append(path([(inner(x), up(s.mean * column.scale)) for x, s in places], f"curve {kind}"))
        for x, s in places:
            if kind == name and s.low is not None:
                ends = up(s.low * column.scale), up(s.high * column.scale)
                marks.append(line(across(x), ends[0], across(x), ends[1], f"whisker {kind}"))
            words = "permuted control" if kind != name else family[0].series
            marks.append(dot(across(x), up(s.mean * column.scale), 4.5, f"mark {kind}", _tip(words, x, s, column)))
    parts += [stretched(LEFT, 99.0, HEIGHT, stretched_parts), *marks]
    parts.append(text((LEFT + 99) / 2, HEIGHT - 4, "eta (share of tokens that is not important)", "axis words"))
    title = family_title(family[0])
    label = f"{column.title} over eta, {title}, with {comparison.baseline.name} and the permuted control as bands"
    return f'<figure class="panel"><h4 class="{name}">{escape(title)}</h4>{svg(HEIGHT, parts, label)}</figure>'


def family_title(point: Point) -> str:
    """Return what a family of points that differ in eta is: its series, and what else tells it from others."""
    named = ("objective", "grouper", *OF_ETA, *OF_LAMBDA)
    rest = [f"{key} {shown(value)}" for key, value in point.varying.items() if key not in named]
    if any(key in point.varying for key in OF_LAMBDA):
        rest.insert(0, f"lambda {lambda_label(point)}")
    return ", ".join([point.series, *rest])


def _axes(across: Scale, up: Scale) -> str:
    parts = []
    shown_y = up.ticks(5)
    for value in shown_y:
        parts.append(line(LEFT, up(value), 99.0, up(value), "grid"))
        parts.append(text(LEFT - 1.2, up(value) + 4, tick_text(value, shown_y), "axis", "end"))
    shown_x = across.ticks(5)
    parts += [text(across(value), HEIGHT - BOTTOM + 15, tick_text(value, shown_x), "axis") for value in shown_x]
    return "".join([*parts, line(LEFT, HEIGHT - BOTTOM, 99.0, HEIGHT - BOTTOM, "tick")])


def _tip(words: str, eta: float, summary: Summary, column: Column) -> str:
    text_ = f"{words}, eta {eta:g}: {summary_text(summary, column)}"
    if summary.low is not None:
        text_ += f", 95 % interval {value_text(summary.low, column)} to {value_text(summary.high, column)}"
    return text_
