"""From shards to the trainer's data: groups are made here, at load time, so eta never needs a second annotation.

What enters: complete shard directories, the score column, eta. What leaves: memory-mapped Arrow data sets with one row
a document (`input_ids`, `supervised`, and `important` or `reference_loss`), split by `--eval_seed`, and a `DataReport`.
Next: `collate.py` makes batches of them, `preflight.py` prints the report.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from common.errors import UserError, raise_together
from common.files import atomic_path, read_json, write_json
from common.shards import ShardDirectory
from common.storage import Location
from common.thresholds import Ties, important_tokens, num_important
from train.data.permutation import permute_groups, random_reference_losses

if TYPE_CHECKING:
    from datasets import Dataset

IMPORTANT = "important"  # list<bool>: the token is in group 1
REFERENCE_LOSS = "reference_loss"  # list<float32>: the reference model's cross-entropy, for groups made at each step


@dataclass(frozen=True)
class GroupPlan:
    """How tokens get into groups."""

    column: str | None  # the score column; None: no groups
    dynamic: bool  # groups are made at each step from the excess loss against the column
    eta: float
    ties: Ties
    permute_seed: int | None = None  # of the control, in which each training document's groups are dealt out by chance


@dataclass(frozen=True)
class DataReport:
    """What the training data holds, for the preflight report and `run.json`. Held-out documents are not in it."""

    documents: int
    supervised_tokens: int  # those that are predicted: a document's first token is not
    important_tokens: int | None  # None: no groups
    share_quartiles: list[float] | None  # of important tokens, over documents: min, 25%, 50%, 75%, max
    empty_important: int | None  # documents
    empty_unimportant: int | None  # documents
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


def plan_groups(shards: Sequence[ShardDirectory], grouper: str | None, objective: Any) -> GroupPlan:
    """Choose the score column and check that its kind fits the objective (an `ObjectiveSettings`).

    Raises:
        UserError: no such column, or a column of the wrong kind.
    """
    kinds = shards[0].columns
    if objective.objective == "sft" and grouper is None:
        # Only the curves need groups, so shards that do not say which ones give none.
        if len(kinds) != 1 or any(other.columns != kinds for other in shards):
            return GroupPlan(None, False, objective.eta, objective.resolved_ties)
        grouper = next(iter(kinds))
    elif grouper is None and objective.is_dynamic:
        references = [name for name, kind in kinds.items() if kind == "reference_loss"]
        grouper = references[0] if len(references) == 1 else None
    column = shards[0].resolve_column(grouper)
    raise_together([problem for other in shards[1:] if (problem := _lacks(other, column))])
    for other in shards:
        _check_kind(other, column, objective)
    return GroupPlan(column, other.columns[column] == "reference_loss", objective.eta, objective.resolved_ties)


def _lacks(shards: ShardDirectory, column: str) -> str | None:
    try:
        shards.resolve_column(column)
    except UserError as error:
        return str(error)
    return None


def _check_kind(shards: ShardDirectory, column: str, objective: Any) -> None:
    kind = shards.columns[column]
    if objective.objective == "sft":
        return
    if objective.is_dynamic and kind != "reference_loss":
        raise UserError(
            f"{shards.path}: objective {objective.objective} with groups from the excess loss needs a column of "
            f"reference losses, but {column!r} holds {kind} scores. Annotate with `--grouper rho1 --reference-model …` "
            "and pass --grouper rho1, or use --objective go with this column."
        )
    if not objective.is_dynamic and kind == "reference_loss":
        raise UserError(
            f"{shards.path}: {column!r} holds a reference model's losses, which are no importance by themselves: the "
            "excess loss needs the model being trained. Use --objective rho1, or --objective go --dynamic_groups, or "
            "another --grouper."
        )


def load_data(
    shards: Sequence[ShardDirectory],
    plan: GroupPlan,
    max_length: int,
    eval_fraction: float,
    eval_seed: int,
    cache: Path,
) -> TrainingData:
    """Return the training and held-out data; the Arrow files go into `cache` and are found there again.

    The held-out documents depend on the number of documents, `eval_fraction` and `eval_seed` alone. Their groups are
    never permuted, so that a control is measured by the groups of the run that it belongs to.
    """
    from datasets import Dataset

    key = _cache_key(shards, plan, max_length, eval_fraction, eval_seed)
    files = {part: cache / f"{part}-{key}.arrow" for part in ("train", "eval")}
    report_file = cache / f"report-{key}.json"
    if not report_file.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        report = _write_parts(shards, plan, max_length, eval_fraction, eval_seed, files)
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
) -> DataReport:
    held_out = choose_held_out(sum(s.manifest.counts.documents for s in shards), eval_fraction, eval_seed)
    tallies: list[np.ndarray] = []
    dropped = truncated_here = held = start = 0
    with atomic_path(files["train"]) as train, atomic_path(files["eval"]) as evaluation:
        schema = _schema(plan)
        with (
            pa.OSFile(str(train), "wb") as train_file,
            pa.OSFile(str(evaluation), "wb") as eval_file,
            pa.ipc.new_stream(train_file, schema) as train_stream,
            pa.ipc.new_stream(eval_file, schema) as eval_stream,
        ):
            for shard in _documents(shards, plan, max_length, held_out):
                out = held_out[start : start + len(shard.kept)]
                start += len(shard.kept)
                train_stream.write_table(shard.table.filter(pa.array(shard.kept & ~out)))
                eval_stream.write_table(shard.table.filter(pa.array(shard.kept & out)))
                tallies.append(shard.tally[shard.kept & ~out])
                dropped += int((~shard.kept).sum())
                truncated_here += shard.truncated
                held += int((shard.kept & out).sum())
    if held == 0:
        files["eval"].unlink()
    tally = np.concatenate(tallies) if tallies else np.zeros((0, 2), dtype=np.int64)
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
    supervised, important = tally[:, 0], tally[:, 1]
    has_groups = plan.column is not None and len(tally) > 0
    return DataReport(
        documents=len(tally),
        supervised_tokens=int(supervised.sum()),
        important_tokens=int(important.sum()) if has_groups else None,
        share_quartiles=np.quantile(important / supervised, [0, 0.25, 0.5, 0.75, 1]).tolist() if has_groups else None,
        empty_important=int((important == 0).sum()) if has_groups else None,
        empty_unimportant=int((important == supervised).sum()) if has_groups else None,
        held_out=held,
        dropped=dropped,
        truncated=truncated,
        truncated_here=truncated_here,
    )


def _schema(plan: GroupPlan) -> pa.Schema:
    fields = [("input_ids", pa.list_(pa.int32())), ("supervised", pa.list_(pa.bool_()))]
    if plan.column is not None:
        fields.append((REFERENCE_LOSS, pa.list_(pa.float32())) if plan.dynamic else (IMPORTANT, pa.list_(pa.bool_())))
    return pa.schema(fields)


class _Shard(NamedTuple):
    table: pa.Table  # the columns of `_schema`
    kept: np.ndarray  # bool [rows]: the document has a supervised token to predict
    tally: np.ndarray  # int64 [rows, 2]: supervised and important tokens that are predicted
    truncated: int


def _documents(
    shards: Sequence[ShardDirectory], plan: GroupPlan, max_length: int, held_out: np.ndarray
) -> Iterator[_Shard]:
    columns = ["document_id", "input_ids", "supervised", *([plan.column] if plan.column else [])]
    start = 0
    for directory in shards:
        for table in directory.tables(columns):
            rows = slice(start, start + table.num_rows)
            start = rows.stop
            yield _group(table, plan, max_length, held_out[rows], directory.path)


def _group(table: pa.Table, plan: GroupPlan, max_length: int, held_out: np.ndarray, source: Location) -> _Shard:
    """Cut documents at `max_length` and split their tokens into groups, one shard at a time."""
    lists = {name: table[name].combine_chunks() for name in table.column_names if name != "document_id"}
    offsets = lists["input_ids"].offsets.to_numpy().astype(np.int64)
    offsets -= offsets[0]
    flat = {name: column.flatten().to_numpy(zero_copy_only=False) for name, column in lists.items()}
    lengths = np.diff(offsets)
    truncated = int((lengths > max_length).sum())
    if truncated:
        position = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        flat = {name: values[position < max_length] for name, values in flat.items()}
        lengths = np.minimum(lengths, max_length)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
    supervised = flat["supervised"]
    predicted = supervised.copy()
    predicted[offsets[:-1][lengths > 0]] = False  # nothing predicts a document's first token
    num_supervised = _sum_lists(predicted, offsets)
    arrays = {"input_ids": flat["input_ids"], "supervised": supervised}
    num_in_group = np.zeros_like(num_supervised)
    if plan.column is not None:
        scores = flat[plan.column]
        bad = np.flatnonzero(_sum_lists(~np.isfinite(scores) & supervised, offsets))
        if bad.size:
            raise UserError(
                f"{source}: column {plan.column!r} of document {table['document_id'][int(bad[0])]} holds NaN or "
                f"infinity ({bad.size} such documents in this shard). Annotate again."
            )
        if plan.dynamic:
            arrays[REFERENCE_LOSS] = scores.astype(np.float32)
            num_in_group = np.array([num_important(plan.eta, int(n)) for n in num_supervised], dtype=np.int64)
        else:
            important = np.zeros(len(scores), dtype=bool)
            for start, end in pairwise(offsets):
                document = slice(start, end)
                important[document] = important_tokens(
                    scores[document], supervised[document], plan.eta, plan.ties
                ).important
            arrays[IMPORTANT] = important
            num_in_group = _sum_lists(important & predicted, offsets)
        if plan.permute_seed is not None:
            name, permute = (REFERENCE_LOSS, random_reference_losses) if plan.dynamic else (IMPORTANT, permute_groups)
            dealt = predicted & ~np.repeat(held_out, lengths)
            arrays[name] = permute(arrays[name], dealt, offsets, table["document_id"].to_pylist(), plan.permute_seed)
    schema = _schema(plan)
    columns = [
        pa.ListArray.from_arrays(offsets.astype(np.int32), pa.array(arrays[f.name], f.type.value_type)) for f in schema
    ]
    tally = np.stack([num_supervised, num_in_group], axis=1)
    return _Shard(pa.table(columns, schema=schema), num_supervised > 0, tally, truncated)


def _sum_lists(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return the sum of each list's values, int64 [rows]."""
    total = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
    return total[offsets[1:]] - total[offsets[:-1]]
