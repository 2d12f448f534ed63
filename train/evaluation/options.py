"""The words after `train evaluate`, and what of them does not fit together.

What enters: words. What leaves: options, and a sentence for every problem. Next: `command.py` does what they ask.
"""

import argparse
import re
from collections.abc import Sequence

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
  train evaluate sweeps/first --shards shards/lima --eval_fraction 0.2
writes <run>/held_out/lima.parquet for every finished run: documents of another data set, a column of their own in
`train compare`.
  train evaluate HuggingFaceTB/SmolLM2-135M-Instruct --shards shards/alpaca --eval_fraction 0.05 --out untrained
writes untrained/eval_documents.parquet, as `train run --eval_fraction` does at its end: with the runs' own fraction,
eval_seed and shards, `train compare` sets it beside them."""

NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._+-]*[A-Za-z0-9])?")
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
DOCUMENTS = ("name", "eval_fraction", "eval_seed", "eval_groupers", "eta", "ties", "max_length", "use_cpu", "seed")


def build_parser() -> CommandParser:
    """Return the parser of `train evaluate`."""
    parser = CommandParser(
        "evaluate",
        DESCRIPTION,
        "train evaluate RUN|SWEEP|CHECKPOINT [--suite NAME|FILE] [--tasks NAME …] [--shards DIR …] [flags]",
    )
    add = parser.add_argument
    add(
        "target",
        metavar="RUN|SWEEP|CHECKPOINT",
        help="a run's or a sweep's directory, or one with runs in it, such as sweeps/first/runs/sft; a checkpoint's, "
        "or a hub id",
    )
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
    add(
        "--name",
        help="of this set of documents: results are held_out/NAME.parquet; default: the shard directories' names, and "
        "with --out eval_documents.parquet, as of the runs' own shards",
    )
    add(
        "--eval_fraction",
        type=float,
        metavar="SHARE",
        help="the share of documents that is asked: as in the runs; of other data, up to 1, which is all",
    )
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


def problems(options: argparse.Namespace, words: Sequence[str]) -> list[str]:
    """Return what of the options does not fit together; `words` tell which were given."""
    given = {word[2:].partition("=")[0] for word in words if word.startswith("--")}
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
    elif options.eval_fraction is None or not 0 < options.eval_fraction <= 1:
        found.append(f"--eval_fraction: expected a share in (0, 1], found {options.eval_fraction}.")
    if options.name is not None and not NAME.fullmatch(options.name):
        found.append(f"--name {options.name}: expected letters, digits, and . _ + - within them.")
    if options.target == "tiny" and not options.out:
        found.append("tiny: has random weights and no directory; say with --out where its results go.")
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
