"""The report as Markdown: the finding, the tables, how to repeat it. One figure may lie beside it, the rest is in the
HTML.

What enters: a `Comparison`. What leaves: text that GitHub shows as tables.
"""

import shlex
from collections.abc import Mapping, Sequence
from urllib.parse import quote

from train.comparison.comparison import Comparison
from train.comparison.figures.curves import switches_text
from train.comparison.findings import findings
from train.comparison.reports import method, tables
from train.comparison.reports.tables import Cell, Table


def write_markdown(
    comparison: Comparison, command: Sequence[str], made: Mapping[str, str], picture: str | None = None
) -> str:
    """Return the report; `made` says when and by which version, `picture` where that of the differences lies."""
    parts = [f"# Comparison with {comparison.baseline.name}: {comparison.headline.title}", *findings(comparison)]
    if picture is not None:
        parts += [
            f"![Differences from {comparison.baseline.name} with 95 % intervals]({quote(picture)})",
            "Differences paired by seed and item, with 95 % intervals. Hollow: permuted controls. Star: holds after "
            "the correction over the main table.",
        ]
    for title, table in (
        ("Every point, every column", tables.main_table(comparison)),
        ("Does it matter which tokens?", tables.control_table(comparison)),
        ("Constant or decaying lambda", tables.lambda_table(comparison)),
        ("Held-out loss by group", tables.yardstick_table(comparison)),
        ("What could have been seen", tables.detectable_table(comparison)),
        ("What it took", tables.cost_table(comparison)),
        ("Settings", tables.settings_table(comparison)),
    ):
        if table is not None:
            parts += [f"## {title}", table.caption, _table(table), *table.notes]
    switched = [f"- {name}: {text}" for name, curves in comparison.curves.items() if (text := switches_text(curves))]
    if switched:
        parts += ["## Worst-group switches", "\n".join(switched)]
    if comparison.unfinished:
        left = [
            f"- {run.name}: {run.reason}" + (f" (`{run.tail[-1]}`)" if run.tail else "")
            for run in comparison.unfinished
        ]
        parts += ["## Runs that are not in it", "\n".join(left)]
    parts += ["## How the numbers were made", *method.method_paragraphs(comparison)]
    facts = [*made.items(), *method.facts(comparison)]
    parts += ["## How to repeat it", f"```\n{shlex.join(command)}\n```", "\n".join(f"- {k}: {v}" for k, v in facts)]
    return "\n\n".join(parts) + "\n"


def _table(table: Table) -> str:
    heads = [_safe(f"{head} ({note})" if note else head) for head, note in table.heads]
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *([_cell(cell) for cell in row] for row in table.rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(cell: Cell) -> str:
    text = f"**{_safe(cell.text)}**" if cell.bold else _safe(cell.text)
    return "<br>".join([text, *map(_safe, cell.under)])


def _safe(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
