"""The finding and the headline column on the terminal.

What enters: a `Comparison`. What leaves: printed lines.
"""

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from train.comparison.comparison import Comparison
from train.comparison.findings import findings
from train.comparison.reports.numbers import difference_text, difference_unit, interval_text, p_text, summary_text


def print_comparison(comparison: Comparison) -> None:
    """Print what was found, and each point's difference in the headline column."""
    console = Console(highlight=False)
    column, base = comparison.headline, comparison.baseline.name
    for sentence in findings(comparison):
        console.print(sentence, markup=False)
    unit = difference_unit(column)
    # Narrow: a sweep's names, such as go-tfidf-eta0.5.permuted, are to stand in one line of 80 characters.
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1), collapse_padding=True)
    table.add_column("point", overflow="fold", min_width=12)
    under_base = "" if unit == column.unit else unit
    for head, under in ((column.title, column.unit), (f"− {base}", under_base), ("95 % interval", unit), ("p", "Holm")):
        table.add_column(f"{head}\n{under}", justify="right", no_wrap=True)
    for point in comparison.points:
        cells = [point.name, summary_text(comparison.summary(point, column), column)]
        d = comparison.difference("baseline", point.name, column)
        if d is not None and d.estimate.difference is not None:
            cells += [difference_text(d.estimate.difference, column), interval_text(d), p_text(d.p_holm)]
        table.add_row(
            *(cell.replace("[", "\\[") for cell in cells), style="bold" if d is not None and d.holds else None
        )
    console.print("", table, "", sep="\n")
