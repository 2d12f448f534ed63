"""`train compare`: from finished runs to tables, figures and a finding in words.

What enters: the words of the command line. What leaves: the finding and a table on the terminal, and the reports
asked for.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from common.errors import raise_together
from train.settings.parser import CommandParser

PICTURES = ("png", "svg", "pdf")
DESCRIPTION = """Compare finished runs: differences paired by seed and item, with intervals.

  train compare sweep --baseline objective=sft --html report.html
  train compare runs/sft runs/go                    two plain runs: the first is the baseline
  train compare sweep untrained --columns loss      with an evaluated checkpoint beside

Runs on other shards, held-out documents or benchmark questions are refused with what differs."""


def build_parser() -> CommandParser:
    """Return the parser of `train compare`."""
    parser = CommandParser("compare", DESCRIPTION)
    parser.add_argument("directories", nargs="+", type=Path, metavar="DIR", help="sweeps, runs, directories of runs")
    parser.add_argument(
        "--baseline",
        action="append",
        default=[],
        metavar="NAME|SETTING=VALUE",
        help="the point to compare with: its name, or settings that it alone has (may be repeated). Default: "
        "objective=sft",
    )
    parser.add_argument(
        "--columns",
        action="append",
        default=[],
        metavar="NAME",
        help="only these columns of the main table, the first one leads",
    )
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="one HTML file with figures; nothing else is needed to read it"
    )
    parser.add_argument("--md", type=Path, metavar="FILE", help="the tables as Markdown, with --picture's file on top")
    parser.add_argument(
        "--picture", type=Path, metavar="FILE", help="the differences with their intervals (.png, .svg or .pdf)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="every number, for other programs")
    parser.add_argument(
        "--draws", type=int, metavar="N", help="draws of the resampling. Default: 10,000, more for large tables"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the resampling. Default 0")
    return parser


def main(words: Sequence[str]) -> int:
    """Compare, print, write; return the exit status.

    Raises:
        UserError: nothing to compare, or runs that were not asked the same.
    """
    given = build_parser().parse(words)
    _check(given)

    from datetime import UTC, datetime

    from common.files import atomic_path, write_json
    from common.manifest import product_version
    from train.comparison.comparison import compare
    from train.comparison.figures.picture import draw_differences
    from train.comparison.reports.content import report_content
    from train.comparison.reports.html import write_html
    from train.comparison.reports.markdown import write_markdown
    from train.comparison.reports.terminal import print_comparison

    columns = [name for names in given.columns for name in names.split(",")]
    comparison = compare(given.directories, given.baseline, columns, given.draws, given.seed)
    command = ["train", "compare", *words]
    made = {"written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), "sft-go": product_version()}
    if given.picture is not None:
        draw_differences(given.picture, comparison)
    texts = [(given.html, write_html(comparison, command, made))] if given.html is not None else []
    if given.md is not None:
        beside = None if given.picture is None else os.path.relpath(given.picture, given.md.parent)
        texts.append((given.md, write_markdown(comparison, command, made, beside)))
    for path, text in texts:
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    if given.json is not None:
        write_json(given.json, report_content(comparison, command, made))
    print_comparison(comparison)
    for path in (given.html, given.md, given.picture, given.json):
        if path is not None:
            print(f"written: {path}")
    return 0


def _check(given: argparse.Namespace) -> None:
    problems = []
    if given.draws is not None and given.draws < 100:
        problems.append(f"--draws {given.draws}: expected at least 100.")
    for name in ("html", "md", "picture", "json"):
        path = getattr(given, name)
        if path is not None and path.is_dir():
            problems.append(f"--{name} {path}: expected a file to write, found a directory.")
        elif path is not None and not path.absolute().parent.is_dir():
            problems.append(f"--{name} {path}: expected an existing directory to write in, found none.")
    if given.picture is not None and given.picture.suffix.lstrip(".").lower() not in PICTURES:
        problems.append(f"--picture {given.picture}: expected a name that ends in .{', .'.join(PICTURES)}.")
    raise_together(problems)
