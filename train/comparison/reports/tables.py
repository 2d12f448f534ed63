"""The tables of a report as plain data, which HTML and Markdown both write.

What enters: a `Comparison`. What leaves: `Table`s: a caption, column heads, rows of cells, each cell with lines of
text and the number it is sorted by. Next: `html.py`, `markdown.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from train.comparison.comparison import Comparison
from train.comparison.pairing import Difference, lambda_families, lambda_label
from train.comparison.reading.columns import Column
from train.comparison.reading.points import Point
from train.comparison.reading.settings import shown
from train.comparison.reports.numbers import (
    NOTHING,
    difference_text,
    difference_unit,
    hours_text,
    interval_text,
    p_text,
    p_words,
    plain,
    summary_text,
)


@dataclass(frozen=True)
class Cell:
    """What stands in a cell."""

    text: str
    sort: float | str | None = None  # None: last, whichever way
    under: tuple[str, ...] = ()  # smaller lines below
    bold: bool = False
    good: bool | None = None  # a difference that holds: for the better or for the worse


@dataclass(frozen=True)
class Table:
    """A table; the first cell of a row is its name."""

    key: str
    caption: str
    heads: tuple[tuple[str, str], ...]  # (head, smaller line below)
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    names: tuple[str, ...] = field(default=())  # of the point of each row, for its colour


def main_table(comparison: Comparison) -> Table:
    """Return point × column: mean ± sd, difference with interval, corrected p."""
    base = comparison.baseline.name
    size = max((d.family_size for d in comparison.family("baseline")), default=0)
    caption = (
        f"Mean ± standard deviation over seeds; below it the difference from {base}, paired by seed and item, with its "
        f"95 % interval, and p corrected by Holm's method over the table's comparisons ({size}). Bold: the "
        "corrected p is below "
        "0.05 and the interval leaves 0 out."
    )
    return _values("main", caption, comparison, comparison.main_columns, "baseline")


def yardstick_table(comparison: Comparison) -> Table | None:
    """Return the held-out losses by every yardstick's groups."""
    if not comparison.yardsticks:
        return None
    size = max((d.family_size for d in comparison.family("yardstick")), default=0)
    caption = (
        "Held-out loss in nats a token by the groups of each score column, whichever the run was trained on: "
        f"important tokens, unimportant ones, and the worse of the two. Differences as in the main table, "
        f"corrected over the table's comparisons ({size})."
    )
    return _values("yardstick", caption, comparison, comparison.yardsticks, "yardstick")


def _values(key: str, caption: str, comparison: Comparison, columns: Sequence[Column], family: str) -> Table:
    heads = (("point", ""), *((column.title, _head_note(column)) for column in columns))
    rows = []
    for point in comparison.points:
        cells = [_name_cell(point, comparison)]
        for column in columns:
            summary = comparison.summary(point, column)
            difference = comparison.difference(family, point.name, column)
            text, sort = summary_text(summary, column), summary.mean if summary else None
            cells.append(_value_cell(text, sort, difference))
        rows.append(tuple(cells))
    return Table(key, caption, heads, tuple(rows), _notes(comparison.family(family)), _names(comparison.points))


def _value_cell(text: str, sort: float | None, difference: Difference | None) -> Cell:
    if difference is None or difference.estimate.difference is None:
        return Cell(text, sort, (difference.note,) if difference is not None and difference.note else ())
    column = difference.column
    under = (
        f"{difference_text(difference.estimate.difference, column)} {interval_text(difference)}",
        p_words(difference.p_holm) if difference.p_holm is not None else "",
    )
    return Cell(
        text, sort, tuple(filter(None, under)), difference.holds, difference.gain > 0 if difference.holds else None
    )


def control_table(comparison: Comparison) -> Table | None:
    """Return every point against its own permuted control, in the headline column."""
    made = [d for d in comparison.family("control") if d.column is comparison.headline]
    if not made:
        return None
    caption = (
        f"{comparison.headline.title} of each point against its own permuted control: as many important tokens in "
        "every document, "
        "chosen by chance. Corrected by Holm's method over the comparisons with controls in all columns "
        f"({max(d.family_size for d in made)})."
    )
    return _comparisons("control", caption, made, ("point",), lambda d: (Cell(d.point, d.point),))


def lambda_table(comparison: Comparison) -> Table | None:
    """Return points that differ in nothing but lambda, against the largest constant one."""
    families = lambda_families(comparison.points)
    if not families:
        return None
    by_name = {point.name: point for point in comparison.points}
    made = comparison.family("lambda")
    caption = (
        f"{comparison.headline.title} of points that differ in nothing but lambda, against the first of each family. "
        f"Corrected over the table's comparisons ({max((d.family_size for d in made), default=0)})."
    )

    def name(d: Difference) -> tuple[Cell, ...]:
        labels = lambda_label(by_name[d.point]), lambda_label(by_name[d.against])
        return Cell(d.point, d.point), Cell(labels[0]), Cell(labels[1])

    return _comparisons("lambda", caption, made, ("point", "lambda", "against lambda"), name)


def _comparisons(key: str, caption: str, made: Sequence[Difference], heads: Sequence[str], name) -> Table:
    column = made[0].column if made else None
    unit = difference_unit(column) if column else ""
    rows = []
    for d in made:
        e = d.estimate
        mark = (d.gain > 0) if d.holds else None
        rows.append(
            (
                *name(d),
                Cell(difference_text(e.difference, d.column), e.difference, (), d.holds, mark),
                Cell(interval_text(d), e.low),
                Cell(p_text(e.p), e.p),
                Cell(p_text(d.p_holm), d.p_holm, (), d.holds),
                Cell(str(len(d.seeds)), len(d.seeds)),
            )
        )
    titles = (
        *((head, "") for head in heads),
        ("difference", unit),
        ("95 % interval", unit),
        ("p", ""),
        ("p, corrected", ""),
    )
    return Table(key, caption, (*titles, ("seeds", "")), tuple(rows), _notes(made), tuple(d.point for d in made))


def detectable_table(comparison: Comparison) -> Table | None:
    """Return what the design could have detected, column by column; None where nothing can be said (one seed)."""
    rows = []
    for column in comparison.main_columns:
        made = [d for d in comparison.family("baseline") if d.column is column and d.detectable is not None]
        if not made:
            continue
        ordered = sorted(made, key=lambda d: d.detectable)
        middle = ordered[len(ordered) // 2]

        def shown_(value: float, column: Column = column) -> str:
            return plain(value * column.scale, column.digits)

        e = middle.estimate
        floors = {d.estimate.p_seeds_floor for d in made} - {None}
        rows.append(
            (
                Cell(column.title, column.title),
                Cell(shown_(middle.detectable), middle.detectable),
                Cell(f"{shown_(ordered[0].detectable)} to {shown_(ordered[-1].detectable)}", ordered[-1].detectable),
                Cell(shown_(middle.detectable_in_table), middle.detectable_in_table),
                Cell(NOTHING if e.se_seeds is None else shown_(e.se_seeds), e.se_seeds),
                Cell(NOTHING if e.se_items is None else shown_(e.se_items), e.se_items),
                Cell(f"{len(middle.seeds)}", len(middle.seeds)),
                Cell(f"{e.num_units:,}", e.num_units),
                Cell(plain(min(floors), 4) if floors else NOTHING, min(floors) if floors else None),
            )
        )
    caption = (
        "The smallest true difference that would have been found with a chance of about 80 % (two-sided, 5 %): for the "
        "middle "
        "point of the table, the least and the most over points, and with the 5 % shared by the whole table. The "
        "two standard "
        "errors say what would help: more seeds, or more items. Last: the smallest p that sign flips over so "
        "many seeds can give."
    )
    heads = (
        ("column", ""),
        ("detectable", "alone"),
        ("range", "over points"),
        ("detectable", "in the table"),
        ("se, seeds", ""),
        ("se, items", ""),
        ("seeds", ""),
        ("items", ""),
        ("least p", "by seeds alone"),
    )
    return Table("detectable", caption, heads, tuple(rows)) if rows else None


def cost_table(comparison: Comparison) -> Table:
    """Return what each point took, and their sum."""
    rows = []
    is_gpu = any(cost.is_gpu for cost in comparison.costs)
    for cost in comparison.costs:
        rows.append(
            (
                Cell(cost.point, cost.point),
                Cell(str(cost.num_runs), cost.num_runs),
                Cell(plain(cost.steps, 0), cost.steps),
                Cell(plain(cost.run_s, 1), cost.run_s),
                Cell(hours_text(cost.device_hours), cost.device_hours),
                Cell(plain(cost.tokens_per_s, 0), cost.tokens_per_s),
                Cell(plain(cost.tokens_seen, 0), cost.tokens_seen),
                Cell(str(cost.redone_steps), cost.redone_steps),
            )
        )
    known = [cost.device_hours for cost in comparison.costs]
    total = None if None in known else sum(known)
    unit = "GPU-hours" if is_gpu else "CPU-hours"
    devices = ", ".join(dict.fromkeys(cost.device for cost in comparison.costs))
    heads = (
        ("point", ""),
        ("runs", ""),
        ("steps", "a run"),
        ("seconds", "a run"),
        (unit, "all runs"),
        ("tokens/s", ""),
        ("tokens seen", "a run"),
        ("redone steps", "all runs"),
    )
    caption = (
        f"What it took: {hours_text(total)} {unit} of training in all, on {devices}. "
        "A redone step was done again after a stop."
    )
    return Table("cost", caption, heads, tuple(rows), (), tuple(cost.point for cost in comparison.costs))


def settings_table(comparison: Comparison) -> Table:
    """Return the settings in which points differ."""
    keys = list(dict.fromkeys(key for point in comparison.points for key in point.varying))
    rows = [
        (
            Cell(point.name, point.name),
            *(
                Cell(shown(point.varying[k]) if k in point.varying else NOTHING, _sortable(point.varying.get(k)))
                for k in keys
            ),
            Cell(", ".join(str(run.seed) for run in point.runs if run.seed is not None) or NOTHING),
        )
        for point in comparison.points
    ]
    heads = (("point", ""), *((key, "") for key in keys), ("seeds", ""))
    caption = "The settings in which the points differ; all others are the same for all."
    return Table("settings", caption, heads, tuple(rows), (), _names(comparison.points))


def common_settings(comparison: Comparison) -> dict[str, str]:
    """Return the settings that are the same in all points that read them."""
    trained = [point.settings for point in comparison.points if not point.is_reference]
    shared = {}
    for key in sorted({key for settings in trained for key in settings}):
        values = {shown(settings[key]) for settings in trained if settings.get(key) is not None}
        if len(values) == 1 and (value := values.pop()) not in ("", "none"):
            shared[key] = value
    return shared


def _sortable(value: object) -> float | str | None:
    return value if isinstance(value, int | float | str) else None


def _name_cell(point: Point, comparison: Comparison) -> Cell:
    note = {"baseline": "baseline", "control": "control", "reference": "not trained here"}
    kind = "baseline" if point is comparison.baseline else "control" if point.control_of else None
    kind = "reference" if point.is_reference else kind
    under = [note[kind]] if kind else []
    seeds = [run.seed for run in point.runs if run.seed is not None]
    if seeds and seeds != [run.seed for run in comparison.baseline.runs]:
        under.append(f"{len(seeds)} seed{'s' if len(seeds) != 1 else ''}")
    return Cell(point.name, point.name, tuple(under))


def _head_note(column: Column) -> str:
    arrow = "↑" if column.better == "higher" else "↓"
    return " ".join(filter(None, [column.unit, arrow, f"{column.num_items:,} items" if column.num_items else ""]))


def _notes(made: Sequence[Difference]) -> tuple[str, ...]:
    notes: dict[str, list[str]] = {}
    for d in made:
        if d.note:
            notes.setdefault(d.note, []).append(d.point)
        covers = {"items": "One seed: the interval is for other items, not for another seed; never bold"}
        covers["seeds"] = "How items vary is not known: the interval is for other seeds only; never bold"
        if d.estimate.covers in covers:
            notes.setdefault(covers[d.estimate.covers], []).append(f"{d.point} ({d.column.title})")
    return tuple(f"{note[0].upper()}{note[1:]}: {_some(list(dict.fromkeys(names)))}." for note, names in notes.items())


def _some(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _names(points: Sequence[Point]) -> tuple[str, ...]:
    return tuple(point.name for point in points)
