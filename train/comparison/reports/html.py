"""The report as one HTML file: nothing is fetched from elsewhere, and without a script it reads the same.

What enters: a `Comparison`, and the command that made it. What leaves: HTML with its style, script and figures inside.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from train.comparison.comparison import Comparison
from train.comparison.figures.curves import curve_panels, legend
from train.comparison.figures.eta import eta_panels
from train.comparison.figures.forest import forest
from train.comparison.figures.palette import colour_classes
from train.comparison.findings import findings
from train.comparison.reports import method, tables
from train.comparison.reports.tables import Cell, Table

HERE = Path(__file__).parent
SHELL = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
<div id="tip" role="status" hidden></div>
<script>{script}</script>
</body>
</html>
"""


def write_html(comparison: Comparison, command: Sequence[str], made: Mapping[str, str]) -> str:
    """Return the page; `made` says when and by which version."""
    classes = colour_classes(comparison.points, comparison.baseline)
    numbers = _Numbers()
    title = f"Comparison with {comparison.baseline.name}: {comparison.headline.title}"
    body = [
        _head(comparison, title, made),
        *_differences(comparison, classes, numbers),
        _table_section("Every point, every column", tables.main_table(comparison), classes, numbers),
        *_optional("Does it matter which tokens?", tables.control_table(comparison), classes, numbers),
        *_eta(comparison, classes, numbers),
        *_lambda(comparison, classes, numbers),
        *_curves(comparison, classes, numbers),
        *_optional("Held-out loss by group", tables.yardstick_table(comparison), classes, numbers),
        *_optional("What could have been seen", tables.detectable_table(comparison), classes, numbers),
        _table_section("What it took", tables.cost_table(comparison), classes, numbers),
        *_unfinished(comparison),
        _method(comparison),
        _repeat(comparison, classes, numbers, command),
    ]
    return SHELL.format(
        title=escape(title),
        style=(HERE / "page.css").read_text(encoding="utf-8"),
        script=(HERE / "page.js").read_text(encoding="utf-8"),
        body="\n".join(body),
    )


class _Numbers:
    """Counts figures and tables as they come."""

    def __init__(self) -> None:
        self.figures = self.tables = 0

    def figure(self) -> str:
        self.figures += 1
        return f"<b>Figure {self.figures}.</b> "

    def table(self) -> str:
        self.tables += 1
        return f"<b>Table {self.tables}.</b> "


def _head(comparison: Comparison, title: str, made: Mapping[str, str]) -> str:
    runs = sum(len(point.runs) for point in comparison.points)
    seeds = sorted({run.seed for point in comparison.points for run in point.runs if run.seed is not None})
    facts = [
        f"{len(comparison.points)} points, {runs} runs",
        f"{len(seeds)} seed{'s' if len(seeds) != 1 else ''}",
        f"baseline {comparison.baseline.name}",
        *(f"{key} {value}" for key, value in made.items()),
    ]
    said = "".join(f"<p>{escape(sentence)}</p>" for sentence in findings(comparison))
    return (
        f'<header><h1>{escape(title)}</h1><p class="meta">{escape(" · ".join(facts))}</p></header>'
        f'<section class="finding" aria-label="Finding">{said}</section>'
    )


def _differences(comparison: Comparison, classes: Mapping[str, str], numbers: _Numbers) -> list[str]:
    drawn = []
    for column in comparison.figure_columns:
        made = [d for d in comparison.family("baseline") if d.column is column]
        if picture := forest(made, classes, comparison.baseline.name):
            over = {"both": " over seeds and items", "items": " over items", "seeds": " over seeds"}
            words = f"Differences from {comparison.baseline.name} in {column.title}, with 95 % intervals"
            words += over.get(made[0].estimate.covers, "") + ". "
            if any(d.holds for d in made):
                words += "Bold where it holds after correction. "
            if any("control" in classes[d.point] for d in made):
                words += "Hollow: permuted controls."
            drawn.append(
                f"<figure>{picture}<figcaption>{numbers.figure()}{escape(words.strip())}</figcaption></figure>"
            )
    return [f"<section><h2>Differences from the baseline</h2>{''.join(drawn)}</section>"] if drawn else []


def _eta(comparison: Comparison, classes: Mapping[str, str], numbers: _Numbers) -> list[str]:
    sections = []
    for column in comparison.figure_columns:
        panels = eta_panels(comparison, column, classes)
        if panels:
            sections.append(
                f'<div class="panels">{"".join(panels)}</div><p '
                f'class="caption">{numbers.figure()}{escape(column.title)} over '
                f"eta: mean with its 95 % interval over seeds. Grey: {escape(comparison.baseline.name)} and its "
                f"interval; dashed, "
                "hollow, with a band: the same groups permuted within each document.</p>"
            )
    return [f"<section><h2>Which eta</h2>{''.join(sections)}</section>"] if sections else []


def _lambda(comparison: Comparison, classes: Mapping[str, str], numbers: _Numbers) -> list[str]:
    table = tables.lambda_table(comparison)
    if table is None:
        return []
    made = comparison.family("lambda")
    if len(made) < 2:
        return [f"<section><h2>Constant or decaying lambda</h2>{_table(table, classes, numbers)}</section>"]
    against = made[0].against if len({d.against for d in made}) == 1 else "the first of its family"
    picture = forest(made, classes, against)
    figure = (
        f"<figure>{picture}<figcaption>{numbers.figure()}The same, as a picture.</figcaption></figure>"
        if picture
        else ""
    )
    return [f"<section><h2>Constant or decaying lambda</h2>{_table(table, classes, numbers)}{figure}</section>"]


def _curves(comparison: Comparison, classes: Mapping[str, str], numbers: _Numbers) -> list[str]:
    panels = curve_panels(comparison, classes)
    if not panels:
        return []
    return [
        f"<section><h2>Training loss by group</h2>{legend(comparison)}<div "
        f'class="panels">{"".join(panels)}</div><p class="caption">'
        f"{numbers.figure()}Mean cross-entropy (nats) of a step's tokens by group, mean ± standard deviation over "
        f"seeds. "
        "The strip is dark where the important group was the worst one, as dark as the share of seeds. Point at "
        "a curve, or focus it and use the arrow keys, to read it.</p></section>"
    ]


def _optional(title: str, table: Table | None, classes: Mapping[str, str], numbers: _Numbers) -> list[str]:
    return [] if table is None else [_table_section(title, table, classes, numbers)]


def _table_section(title: str, table: Table, classes: Mapping[str, str], numbers: _Numbers) -> str:
    return f"<section><h2>{escape(title)}</h2>{_table(table, classes, numbers)}</section>"


def _table(table: Table, classes: Mapping[str, str], numbers: _Numbers) -> str:
    heads = "".join(
        f'<th scope="col" aria-sort="none"><button type="button">{escape(head)}'
        f"{f'<small>{escape(note)}</small>' if note else ''}</button></th>"
        for head, note in table.heads
    )
    rows = []
    for index, row in enumerate(table.rows):
        name = classes.get(table.names[index], "") if table.names else ""
        rows.append(f"<tr>{_cell(row[0], 'th', name)}{''.join(_cell(cell) for cell in row[1:])}</tr>")
    notes = "".join(f"<p>{escape(note)}</p>" for note in table.notes)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(table.key)} table"><table '
        f'class="data {table.key}" id="{table.key}">'
        f"<caption>{numbers.table()}{escape(table.caption)}</caption><thead><tr>{heads}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>{f'<div class=notes>{notes}</div>' if notes else ''}"
    )


def _cell(cell: Cell, tag: str = "td", name: str = "") -> str:
    key = f'<span class="key {name}"></span>' if name else ""
    kinds = [kind for kind, holds in (("good", cell.good is True), ("bad", cell.good is False)) if holds]
    text = f"<b>{escape(cell.text)}</b>" if cell.bold else escape(cell.text)
    under = "".join(f"<small>{escape(line)}</small>" for line in cell.under)
    sort = "" if cell.sort is None or cell.sort != cell.sort else f' data-sort="{escape(json.dumps(cell.sort))}"'
    scope = ' scope="row"' if tag == "th" else ""
    classes = f' class="{" ".join(kinds)}"' if kinds else ""
    return f"<{tag}{scope}{classes}{sort}>{key}{text}{under}</{tag}>"


def _unfinished(comparison: Comparison) -> list[str]:
    if not comparison.unfinished:
        return []
    rows = "".join(
        f"<li><b>{escape(run.name)}</b> {escape(run.reason)}"
        + (f"<pre>{escape(chr(10).join(run.tail[-8:]))}</pre>" if run.tail else "")
        + "</li>"
        for run in comparison.unfinished
    )
    return [f"<section><h2>Runs that are not in it</h2><ul class='plain'>{rows}</ul></section>"]


def _method(comparison: Comparison) -> str:
    return (
        "<section><h2>How the numbers were made</h2>"
        + "".join(f'<p class="prose">{escape(text)}</p>' for text in method.method_paragraphs(comparison))
        + "</section>"
    )


def _repeat(comparison: Comparison, classes: Mapping[str, str], numbers: _Numbers, command: Sequence[str]) -> str:
    facts = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in method.facts(comparison))
    shared = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in tables.common_settings(comparison).items())
    lines = method.commands(comparison)
    return (
        f"<section><h2>How to repeat it</h2><pre>{escape(shlex.join(command))}</pre>"
        f"{_table(tables.settings_table(comparison), classes, numbers)}"
        f'<dl class="facts">{facts}</dl>'
        f"<details><summary>The settings that all points share</summary><dl class='facts'>{shared}</dl></details>"
        f"<details><summary>The commands of the {len(lines)} "
        f"runs</summary><pre>{escape(chr(10).join(lines))}</pre></details></section>"
    )
