"""A view of token losses on the terminal: one document, once for each panel, then what all documents come to.

What enters: a view (`views.py`) and a console. What leaves: coloured text. The page shows the same, and every document.
"""

from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from common.thresholds import important_tokens
from common.viewer.terminal import coloured, ranks


def print_view(view: dict[str, Any], number: int, console: Console) -> None:
    """Print document `number` of a view, and its tables."""
    document, count = view["documents"][number], len(view["documents"])
    console.print(view["title"], markup=False)
    notes = "".join(f" ({note})" for note in document["notes"])
    console.print(f"document {document['id']}, number {number} of 0 to {count - 1}{notes}", markup=False)
    supervised = np.array(document["tokens"]["supervised"], dtype=bool)
    for name, column in view["columns"].items():
        values = np.array(document["scores"][name], dtype=np.float64)
        known = supervised & np.isfinite(values)
        deciding = document["scores"].get(column.get("groups_of") or name)
        important = np.zeros(len(values), dtype=bool)
        if column["kind"] == "importance" or column.get("groups_of"):
            scores = np.array(deciding, dtype=np.float64)
            important = important_tokens(scores, supervised, view["eta"], view["ties"]).important
        console.print(f"\n{name} · {_facts(column['kind'], values, known, important)}", style="bold", markup=False)
        shades = _shades(values, known, column["kind"])
        console.print(coloured(document, shades, supervised, important, console.color_system is not None))
    if console.color_system is not None:
        console.print(
            "\nshade: rank of the value in the document; of changes, of their size, green where the loss fell; "
            "underlined: important; dim: not supervised.",
            markup=False,
        )
    for table in view["tables"]:
        _print_table(table, console)


def _shades(values: np.ndarray, known: np.ndarray, kind: str) -> np.ndarray:
    """Return what `coloured` takes: ranks, and of changes those of their sizes, below 0 where the loss fell."""
    filled = np.where(known, values, 0.0)
    if kind != "change":
        return ranks(filled, known)
    return ranks(np.abs(filled), known) * np.sign(filled)


def _facts(kind: str, values: np.ndarray, known: np.ndarray, important: np.ndarray) -> str:
    inside, outside = known & important, known & ~important
    if kind == "importance":
        return f"{inside.sum()} of {known.sum()} tokens important ({inside.sum() / max(1, known.sum()):.1%})"
    parts = [f"mean {values[known].mean():.4g}" if known.any() else "no token with a loss"]
    parts += [
        f"{name} {values[mask].mean():.4g}"
        for name, mask in (("important", inside), ("unimportant", outside))
        if mask.any() and important.any()
    ]
    if kind == "loss" and important.any() and values[known].sum() > 0:
        parts.append(f"{values[inside].sum() / values[known].sum():.1%} of the loss is of important tokens")
    return " · ".join(parts)


def _print_table(content: dict[str, Any], console: Console) -> None:
    if not content["rows"]:
        return
    console.print(f"\n{content['title']} ({content['note']})", style="bold", markup=False)
    table = Table(box=None, pad_edge=False)
    for index, name in enumerate(content["header"]):
        table.add_column(name, justify="right" if index else "left", no_wrap=not index)
    for row in content["rows"]:
        first, *rest = row["cells"]
        shown = repr(first) if "at" in row else str(first)
        table.add_row(shown.replace("[", "\\["), *("none" if cell is None else _short(cell) for cell in rest))
    console.print(table)


def _short(cell: Any) -> str:
    return f"{cell:.4g}" if isinstance(cell, float) else f"{cell:,}" if isinstance(cell, int) else str(cell)
