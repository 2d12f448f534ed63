"""`train evaluate`: what is done, and what is said on the terminal.

What enters: a run, a sweep or a checkpoint, and what it is to be asked. What leaves: files beside the run, a table, and
an exit status.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError, raise_together
from train.evaluation.options import build_parser, problems
from train.settings.early import underscored


def run(words: Sequence[str]) -> int:
    """Evaluate, and return the exit status."""
    words = underscored(words)
    options = build_parser().parse(words)
    raise_together(problems(options, words))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    _silence_bars()
    status = 0
    if options.shards:
        status = _documents(options)
    if options.suite or options.tasks:
        status = _benchmarks(options) or status
    return status


def _silence_bars() -> None:
    """Leave a line a run, without those of loading its weights and of the data sets' maps."""
    from datasets import disable_progress_bars
    from transformers.utils import logging

    logging.disable_progress_bar()
    disable_progress_bars()


def _documents(options: argparse.Namespace) -> int:
    from train.data.held_out import DOCUMENTS_NAME, HELD_OUT_NAME
    from train.evaluation.checkpoints import Checkpoint, find_checkpoints
    from train.evaluation.documents import Questions, write_documents

    checkpoints, left_out = [Checkpoint("tiny", "tiny", Path(options.out or "."))], []
    if options.target != "tiny":
        checkpoints, left_out = find_checkpoints(options.target, options.out)
    own = options.out and not options.name  # beside the runs' own, not in a set of another name
    name = options.name or "+".join(Path(place).name for place in options.shards)
    below = DOCUMENTS_NAME if own else f"{HELD_OUT_NAME}/{name}.parquet"
    names = ("shards", "eval_fraction", "eval_seed", "eval_groupers", "eta", "ties", "max_length", "use_cpu", "seed")
    questions = Questions(**{name: getattr(options, name) for name in names}, batch_size=int(options.batch_size or 8))
    failed = []
    for checkpoint in checkpoints:
        path = checkpoint.out / below
        try:
            sums, was_there = write_documents(checkpoint, questions, path)
        except UserError as error:
            if len(checkpoints) == 1:
                raise
            failed.append(f"{checkpoint.name}: {error}")
            continue
        if not sums:
            continue
        how = "kept from before" if was_there else "written"
        loss = f"{sums['loss'] / sums['tokens']:.4f} nats"
        if len(checkpoints) > 1:
            print(f"{checkpoint.name}  {loss} a token over {sums['tokens']:,} ({how}: {below})", flush=True)
            continue
        _print_documents(checkpoint.name, sums)
        print(f"loss over all {sums['tokens']:,} tokens: {loss}\n{how}: {path}")
    for line in [*left_out, *failed]:
        print(f"left out  {line}")
    return 1 if failed else 0


def _print_documents(name: str, sums: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{name}: {sums['documents']:,} held-out documents", title_justify="left")
    for name, justify in (
        ("groups of", "left"),
        ("important", "right"),
        ("loss important", "right"),
        ("unimportant", "right"),
    ):
        table.add_column(name, justify=justify)
    columns = [name.removesuffix(".important_tokens") for name in sums if name.endswith(".important_tokens")]
    for column in columns:
        tokens, loss = sums[f"{column}.important_tokens"], sums[f"{column}.important_loss"]
        rest, rest_loss = sums["tokens"] - tokens, sums["loss"] - loss
        share = tokens / sums["tokens"]
        table.add_row(
            column, f"{share:.1%}", *(f"{a / b:.4f}" if b else "none" for a, b in ((loss, tokens), (rest_loss, rest)))
        )
    Console().print(table)


def _benchmarks(options: argparse.Namespace) -> int:
    from train.evaluation.checkpoints import find_checkpoints
    from train.evaluation.harness import Options
    from train.evaluation.results import Evaluation
    from train.evaluation.suite import Asked, load_suite
    from train.evaluation.tasks import metric_problems, open_tasks

    suite = load_suite(options.suite) if options.suite else None
    part = suite.only(options.columns) if suite and options.columns else suite
    wanted = part.asked() if suite else [Asked(name, options.num_fewshot) for name in dict.fromkeys(options.tasks)]
    checkpoints, left_out = find_checkpoints(options.target, options.out)
    tasks = open_tasks(wanted, options.include_path)
    raise_together(metric_problems(part, tasks) if suite else [])
    limit = options.limit
    asked = Options(
        limit=int(limit) if limit is not None and limit >= 1 else limit,
        batch_size=options.batch_size or "8",
        device=options.device,
        dtype=options.dtype,
        apply_chat_template=options.apply_chat_template,
    )
    rows, failed = [], []
    for checkpoint in checkpoints:
        print(checkpoint.name, flush=True)
        try:
            evaluation = Evaluation(checkpoint, asked, lambda line: print(line, flush=True))
            records = evaluation.run(tasks, suite)
        except UserError as error:
            if len(checkpoints) == 1:
                raise
            failed.append(f"{checkpoint.name}: {error}")
            continue
        if suite:
            made = evaluation.write_suite(suite, records, tasks)
            rows.append((checkpoint.name, made["columns"] | {"average": made["average"]}))
        else:
            rows.append(
                (
                    checkpoint.name,
                    {
                        task.file.removesuffix(".json"): r["metrics"][r["headline"]]
                        for task, r in zip(tasks, records.values(), strict=True)
                    },
                )
            )
    _print_table(rows)
    for line in [*left_out, *failed]:
        print(f"left out  {line}")
    return 1 if failed else 0


def _print_table(rows: list[tuple[str, dict[str, float | None]]]) -> None:
    from rich.console import Console
    from rich.table import Table

    if not rows:
        return
    names = list(rows[0][1])
    upright = len(rows) < len(names)  # one checkpoint: a row a column
    table = Table()
    if upright:
        table.add_column("in %")
        for name, _ in rows:
            table.add_column(name, justify="right")
        for column in names:
            table.add_row(column, *(_percent(values[column]) for _, values in rows))
    else:
        table.add_column("in %")
        for column in names:
            table.add_column(column, justify="right")
        for name, values in rows:
            table.add_row(name, *(_percent(values[column]) for column in names))
    Console().print(table)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"
