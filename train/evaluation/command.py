"""`train evaluate`: the words after it, and what is said on the terminal.

What enters: a run, a sweep or a checkpoint, and what it is to be asked. What leaves: files beside the run, a table, and
an exit status.
"""

import argparse
import os
from collections.abc import Sequence
from typing import Any

from common.errors import UserError, raise_together
from train.settings.early import underscored
from train.settings.flags import DEFAULT_ETA
from train.settings.parser import CommandParser

DESCRIPTION = """Ask a finished run, every finished run of a sweep, or any checkpoint what it has learned.

benchmarks, by lm-evaluation-harness, in this process:
  train evaluate runs/mine --suite paper --batch_size 8          the paper's eight columns and their average
  train evaluate sweeps/lima --suite paper                       every finished run, one after another
  train evaluate runs/mine --tasks arc_challenge hellaswag --limit 50
Results lie in <run>/evaluation, item by item; what was asked already is kept, so a killed command goes on.
$SFT_GO_DATA_HOME/benchmarks may hold the data sets, where a hub cannot be reached.

held-out documents, by the groups of every importance column:
  train evaluate HuggingFaceTB/SmolLM2-135M-Instruct --shards shards/lima --eval_fraction 0.05 --out untrained
writes eval_documents.parquet, as `train run --eval_fraction` does at its end. With the same fraction, eval_seed and
shards, `train compare` sets one beside the other."""

BENCHMARKS = (
    "suite",
    "tasks",
    "columns",
    "num_fewshot",
    "limit",
    "include_path",
    "apply_chat_template",
    "dtype",
    "device",
)
DOCUMENTS = ("eval_fraction", "eval_seed", "eval_groupers", "eta", "ties", "max_length", "use_cpu", "seed")


def build_parser() -> CommandParser:
    """Return the parser of `train evaluate`."""
    parser = CommandParser(
        "evaluate",
        DESCRIPTION,
        "train evaluate RUN|SWEEP|CHECKPOINT [--suite NAME|FILE] [--tasks NAME …] [--shards DIR …] [flags]",
    )
    add = parser.add_argument
    add("target", metavar="RUN|SWEEP|CHECKPOINT", help="a run's or a sweep's directory; a checkpoint's, or a hub id")
    add("--out", metavar="DIR", help="where results go; default: beside the run")
    add(
        "--batch_size",
        default=None,
        metavar="N",
        help="sequences of a forward pass; for benchmarks also auto. Default 8",
    )
    group = parser.add_argument_group("benchmarks")
    add = group.add_argument
    add("--suite", metavar="NAME|FILE", help="paper, or a YAML file: columns, and under each task, shots, metrics")
    add(
        "--columns", nargs="+", metavar="NAME", help="only these columns of the suite; its average waits for the others"
    )
    add("--tasks", nargs="+", metavar="NAME", help="tasks or groups of the harness, without a suite")
    add("--num_fewshot", type=int, metavar="N", help="shots of --tasks; default: each task's own")
    add(
        "--limit", type=float, metavar="N", help="only the first N items of each task (below 1: that share): to try out"
    )
    add("--include_path", metavar="DIR", help="a folder of task files of your own, as for lm_eval")
    add("--apply_chat_template", action="store_true", help="put prompts into the tokenizer's chat template")
    add("--dtype", default="auto", help="of the weights; default auto, the checkpoint's own")
    add("--device", help="cuda, cuda:1, cpu, mps; default: a GPU where there is one")
    group = parser.add_argument_group("held-out documents")
    add = group.add_argument
    add("--shards", nargs="+", metavar="DIR", help="shard directories, as for `train run`")
    add("--eval_fraction", type=float, metavar="SHARE", help="the share of documents held out, as in the runs")
    add("--eval_seed", type=int, default=0, metavar="N", help="chooses them, as in the runs; default 0")
    add(
        "--eval_groupers",
        nargs="+",
        metavar="COLUMN",
        help="score columns to measure by; default: all importance columns",
    )
    add(
        "--eta",
        type=float,
        default=DEFAULT_ETA,
        help=f"of their groups; default {DEFAULT_ETA}, as --eval_eta of the runs",
    )
    add("--ties", choices=("threshold", "rank"), default="threshold", help="default threshold, as in the runs")
    add("--max_length", type=int, metavar="N", help="cut documents here; default: the shards' own")
    add("--use_cpu", action="store_true", help="even where there is a GPU")
    add("--seed", type=int, default=42, help="of the weights of the checkpoint `tiny`, untrained; default 42")
    return parser


def run(words: Sequence[str]) -> int:
    """Evaluate, and return the exit status."""
    words = underscored(words)
    options = build_parser().parse(words)
    raise_together(_problems(options, set(_given(words))))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    status = 0
    if options.shards:
        _documents(options)
    if options.suite or options.tasks:
        status = _benchmarks(options)
    return status


def _given(words: Sequence[str]) -> list[str]:
    return [word[2:].partition("=")[0] for word in words if word.startswith("--")]


def _problems(options: argparse.Namespace, given: set[str]) -> list[str]:
    found = []
    asks = options.suite or options.tasks
    if not asks and not options.shards:
        found.append("nothing is asked: give --suite, --tasks or --shards (`train evaluate --help` shows examples).")
    if options.suite and options.tasks:
        found.append("--suite and --tasks: give one of them; a suite names its tasks itself.")
    if options.columns and not options.suite:
        found.append("--columns: of which suite? Add --suite.")
    if options.num_fewshot is not None and not options.tasks:
        found.append("--num_fewshot: for --tasks; a suite says its shots itself.")
    if not asks:
        unread = [name for name in BENCHMARKS if name in given]
        found += [f"--{name}: only for benchmarks; add --suite or --tasks, or remove the flag." for name in unread]
    if not options.shards:
        unread = [name for name in DOCUMENTS if name in given]
        found += [f"--{name}: only for held-out documents; add --shards, or remove the flag." for name in unread]
    elif options.eval_fraction is None or not 0 < options.eval_fraction < 1:
        found.append(f"--eval_fraction: expected a share in (0, 1), as the runs had, found {options.eval_fraction}.")
    elif not options.out:
        found.append("--out: say where eval_documents.parquet goes; a run has its own already.")
    if options.target == "tiny" and asks:
        found.append("tiny: has random weights over the tokenizer of shards; benchmarks need a checkpoint.")
    if options.eval_seed < 0:
        found.append(f"--eval_seed: expected a whole number of at least 0, found {options.eval_seed}.")
    if not 0 <= options.eta < 1:
        found.append(f"--eta: expected the share of tokens that is NOT important, in [0, 1), found {options.eta}.")
    if options.limit is not None and options.limit <= 0:
        found.append(f"--limit: expected a number of items, or a share of them below 1, found {options.limit:g}.")
    size = options.batch_size
    if size is not None and not (size.isdecimal() and int(size)) and (options.shards or not size.startswith("auto")):
        found.append(f"--batch_size: expected a whole number of at least 1, found {size}.")
    return found


def _documents(options: argparse.Namespace) -> None:
    from train.evaluation.checkpoints import Checkpoint, find_checkpoints
    from train.evaluation.documents import Questions, write_documents

    if options.target == "tiny":
        from pathlib import Path

        checkpoint = Checkpoint("tiny", "tiny", Path(options.out))
    else:
        (checkpoint,), _ = find_checkpoints(options.target, options.out)
    names = ("shards", "eval_fraction", "eval_seed", "eval_groupers", "eta", "ties", "max_length", "use_cpu", "seed")
    questions = Questions(**{name: getattr(options, name) for name in names}, batch_size=int(options.batch_size or 8))
    sums = write_documents(checkpoint, questions)
    if sums:
        _print_documents(checkpoint, sums)


def _print_documents(checkpoint: Any, sums: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{checkpoint.name}: {sums['documents']:,} held-out documents", title_justify="left")
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
    console = Console()
    console.print(table)
    console.print(f"loss over all {sums['tokens']:,} tokens: {sums['loss'] / sums['tokens']:.4f} nats", highlight=False)
    console.print(f"written: {checkpoint.out / 'eval_documents.parquet'}", highlight=False, soft_wrap=True)


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
