"""From shards to the trainer's data: groups are made here, at load time, so eta never needs a second annotation.

What enters: complete shard directories, the score column, eta. What leaves: memory-mapped Arrow data sets with one row
a document (`input_ids`, `supervised`, and what the plan asks for: `group`, `share`, `reference_loss`, `score`), split
by `--eval_seed`, and a `DataReport`. Next: `collate.py` makes batches of them, `preflight.py` prints the report.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from common.errors import UserError, raise_together
from common.files import atomic_path, read_json, write_json
from common.shards import ShardDirectory
from train.data.plan import GroupPlan
from train.data.rows import read_rows, row_schema

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class DataReport:
    """What the training data holds, for the preflight report and `run.json`. Held-out documents are not in it."""

    documents: int
    supervised_tokens: int  # those that are predicted: a document's first token is not
    important_tokens: int | None  # None: no groups
    share_quartiles: list[float] | None  # of important tokens, over documents: min, 25%, 50%, 75%, max
    empty_important: int | None  # documents
    empty_unimportant: int | None  # documents
    group_tokens: list[int] | None  # of each group; the important tokens are those of all groups but the first
    held_out: int  # documents
    dropped: int  # documents without a supervised token to predict
    truncated: int  # documents cut by the annotation
    truncated_here: int  # documents cut by --max_length of this run


class TrainingData(NamedTuple):
    """The data sets and what they hold."""

    train: "Dataset"
    eval: "Dataset | None"
    report: DataReport


def open_shards(paths: Sequence[str]) -> list[ShardDirectory]:
    """Open shard directories, and raise one `UserError` for everything that is wrong with any of them."""
    opened, problems = [], []
    for path in paths:
        try:
            opened.append(ShardDirectory(path))
        except UserError as error:
            problems.append(str(error))
    fingerprints = {shards.manifest.tokenizer.fingerprint for shards in opened}
    if len(fingerprints) > 1:
        held = ", ".join(f"{shards.path}: {shards.manifest.tokenizer.name}" for shards in opened)
        problems.append(f"--shards: expected directories of one tokenizer, found several ({held}). Train on one.")
    raise_together(problems)
    return opened


def read_documents(path: str) -> frozenset[str]:
    """Return the document ids of a file with one a line, such as `annotate select` writes.

    Raises:
        UserError: it cannot be read, or holds none.
    """
    try:
        found = frozenset(Path(path).read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--documents {path}: expected a text file with one document id a line ({error}).") from error
    if not found:
        raise UserError(f"--documents {path}: expected document ids, one a line; found none.")
    return found


def load_data(
    shards: Sequence[ShardDirectory],
    plan: GroupPlan,
    max_length: int,
    eval_fraction: float,
    eval_seed: int,
    cache: Path,
    documents: frozenset[str] | None = None,
) -> TrainingData:
    """Return the training and held-out data; the Arrow files go into `cache` and are found there again.

    The held-out documents depend on the number of documents, `eval_fraction` and `eval_seed` alone. Their groups are
    never permuted, so that a control is measured by the groups of the run that it belongs to. With `documents`, ids,
    only those are trained on; what is held out stays the same.
    """
    from datasets import Dataset

    key = _cache_key(shards, plan, max_length, eval_fraction, eval_seed, documents and sorted(documents))
    files = {part: cache / f"{part}-{key}.arrow" for part in ("train", "eval")}
    report_file = cache / f"report-{key}.json"
    if not report_file.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        report = _write_parts(shards, plan, max_length, eval_fraction, eval_seed, files, documents)
        write_json(report_file, dataclasses.asdict(report))  # last: it makes the other two complete
    report = DataReport(**read_json(report_file))
    if report.documents == 0:
        raise UserError("no document with a supervised token is left to train on. Raise --max_length or add shards.")
    parts = {
        part: Dataset.from_file(str(file)).with_format("numpy") if file.is_file() else None
        for part, file in files.items()
    }
    return TrainingData(parts["train"], parts["eval"], report)


def _cache_key(shards: Sequence[ShardDirectory], plan: GroupPlan, *settings: Any) -> str:
    identity = [[s.digest for s in shards], dataclasses.asdict(plan), settings]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]


def _write_parts(
    shards: Sequence[ShardDirectory],
    plan: GroupPlan,
    max_length: int,
    eval_fraction: float,
    eval_seed: int,
    files: dict[str, Path],
    documents: frozenset[str] | None,
) -> DataReport:
    held_out = choose_held_out(sum(s.manifest.counts.documents for s in shards), eval_fraction, eval_seed)
    tallies: list[np.ndarray] = []
    dropped = truncated_here = held = start = num_listed = 0
    with atomic_path(files["train"]) as train, atomic_path(files["eval"]) as evaluation:
        schema = row_schema(plan)
        with (
            pa.OSFile(str(train), "wb") as train_file,
            pa.OSFile(str(evaluation), "wb") as eval_file,
            pa.ipc.new_stream(train_file, schema) as train_stream,
            pa.ipc.new_stream(eval_file, schema) as eval_stream,
        ):
            for shard in read_rows(shards, plan, max_length, held_out):
                out = held_out[start : start + len(shard.kept)]
                start += len(shard.kept)
                chosen = shard.kept & ~out
                if documents is not None:
                    listed = np.array([identity in documents for identity in shard.document_ids], dtype=bool)
                    num_listed += int(listed.sum())
                    chosen &= listed
                train_stream.write_table(shard.table.filter(pa.array(chosen)))
                eval_stream.write_table(shard.table.filter(pa.array(shard.kept & out)))
                tallies.append(shard.tally[chosen])
                dropped += int((~shard.kept).sum())
                truncated_here += shard.truncated
                held += int((shard.kept & out).sum())
    if documents is not None and num_listed != len(documents):
        raise UserError(
            f"--documents: {len(documents) - num_listed:,} of its {len(documents):,} ids are in none of --shards. Make "
            "the list from these shards."
        )
    if held == 0:
        files["eval"].unlink()
    tally = np.concatenate(tallies) if tallies else np.zeros((0, 1 + plan.num_groups), dtype=np.int64)
    truncated = sum(s.manifest.counts.truncated for s in shards)
    return _report(tally, plan, held, dropped, truncated, truncated_here)


def choose_held_out(num_documents: int, eval_fraction: float, eval_seed: int) -> np.ndarray:
    """Return which documents are held out, bool [num_documents], in the order of the shards."""
    held_out = np.zeros(num_documents, dtype=bool)
    chosen = np.random.default_rng(eval_seed).permutation(num_documents)[: round(num_documents * eval_fraction)]
    held_out[chosen] = True
    return held_out


def _report(
    tally: np.ndarray, plan: GroupPlan, held: int, dropped: int, truncated: int, truncated_here: int
) -> DataReport:
    supervised, important = tally[:, 0], tally[:, 2:].sum(axis=1)
    has_groups = plan.column is not None and len(tally) > 0
    return DataReport(
        documents=len(tally),
        supervised_tokens=int(supervised.sum()),
        important_tokens=int(important.sum()) if has_groups else None,
        share_quartiles=np.quantile(important / supervised, [0, 0.25, 0.5, 0.75, 1]).tolist() if has_groups else None,
        empty_important=int((important == 0).sum()) if has_groups else None,
        empty_unimportant=int((important == supervised).sum()) if has_groups else None,
        group_tokens=[int(size) for size in tally[:, 1:].sum(axis=0)] if has_groups else None,
        held_out=held,
        dropped=dropped,
        truncated=truncated,
        truncated_here=truncated_here,
    )
