"""`train inspect`: what training did to the tokens, on the terminal or as one HTML file.

What enters: a run that kept its tokens' losses, or two. What leaves: a document with each token's loss before and
after beside its score and group, and what the losses of all kept documents come to.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError, raise_together
from train.settings.parser import CommandParser

DESCRIPTION = """Look at what a run did to the tokens of held-out documents: each token's loss before the first step and
after the last, beside its score and group; the tokens that gained most and least; the share of the loss by group.

  train run --shards shards/lima --eval_fraction 0.05 --token_losses 50 … --output_dir runs/go
  train inspect runs/go
  train inspect runs/go --other runs/sft --html tokens.html

The run must have been given --token_losses. Texts and scores are those of its shards, which must be the same still."""


def build_parser() -> CommandParser:
    """Return the parser of `train inspect`."""
    parser = CommandParser("inspect", DESCRIPTION)
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="the directory of a finished run")
    add("--other", type=Path, metavar="RUN", help="another run over the same held-out documents, to set beside it")
    add(
        "--document",
        metavar="ID|N",
        help="the one to show: its number among those kept, from 0, or its id's start",
    )
    add("--html", type=Path, metavar="FILE", help="one HTML file with all kept documents, or --document; needs nothing")
    add("--grouper", action="append", default=[], metavar="COLUMN", help="scores to show; default: the run's own")
    add("--eta", type=float, help="of the groups; default: that of the run's held-out documents")
    add("--shards", nargs="+", metavar="DIR", help="where the run's shards are now; default: where they were")
    return parser


def main(words: Sequence[str]) -> int:
    """Show, and return the exit status.

    Raises:
        UserError: no such run or document, or its shards are gone or changed.
    """
    given = build_parser().parse(words)
    _check(given)

    from common.viewer.page import write_page
    from train.inspection.losses import add_texts, importance_columns, open_run_shards, pair, read_run
    from train.inspection.views import ShardTokenizer, make_view

    run = read_run(given.run)
    other = None if given.other is None else read_run(given.other)
    pairs: list[tuple[Any, Any]] = [(one, None) for one in run.documents] if other is None else pair(run, other)
    number = None if given.document is None else find_document([one.id for one, _ in pairs], given.document)
    shards = open_run_shards(run, given.shards)
    columns = importance_columns(run, shards, given.grouper)
    add_texts([document for document, _ in pairs], shards, columns)
    eta = run.facts["eta"] if given.eta is None else given.eta
    view = make_view(run, pairs, columns, eta, run.facts["ties"], ShardTokenizer(shards[0]), other)
    if given.html is None:
        from rich.console import Console

        from train.inspection.terminal import print_view

        print_view(view, number or 0, Console(highlight=False))
        return 0
    from common.files import atomic_path

    if number is not None:
        view |= {"documents": [view["documents"][number]], "tables": _leading_to(view["tables"], number)}
    with atomic_path(given.html) as temporary:
        temporary.write_text(write_page(view), encoding="utf-8")
    count = len(view["documents"])
    print(f"{given.html}: {count} document{'s' if count != 1 else ''}, {', '.join(view['columns'])}.")
    return 0


def find_document(ids: Sequence[str], wanted: str) -> int:
    """Return the number of the kept document that `--document` names.

    Raises:
        UserError: there is no such document, or there are several.
    """
    if wanted.isdecimal() and int(wanted) < len(ids):
        return int(wanted)
    found = [number for number, name in enumerate(ids) if name.startswith(wanted)]
    if len(found) != 1:
        several = f"{len(found)} such ids, {ids[found[0]]} and {ids[found[1]]} among them" if found else "none"
        raise UserError(
            f"--document {wanted}: expected a number from 0 to {len(ids) - 1} or the start of one kept document's id, "
            f"found {several}. Kept are {', '.join(ids[:8])}{' …' if len(ids) > 8 else ''}."
        )
    return found[0]


def _leading_to(tables: Sequence[dict[str, Any]], number: int) -> list[dict[str, Any]]:
    """Return the tables with rows that lead to the one document that is shown; the others' lead nowhere."""
    led = []
    for table in tables:
        rows = []
        for row in table["rows"]:
            at = row.get("at")
            kept = {"at": [0, at[1]]} if at and at[0] == number else {}
            rows.append({"cells": row["cells"], **kept})
        led.append({**table, "rows": rows})
    return led


def _check(given: argparse.Namespace) -> None:
    problems = []
    if given.eta is not None and not 0.0 <= given.eta < 1.0:
        problems.append(f"--eta: expected a share in [0, 1), found {given.eta}.")
    if given.html is not None and given.html.is_dir():
        problems.append(f"--html {given.html}: expected a file to write, found a directory.")
    elif given.html is not None and not given.html.absolute().parent.is_dir():
        problems.append(
            f"--html {given.html}: expected a file in a directory that exists, found no {given.html.parent}."
        )
    raise_together(problems)
