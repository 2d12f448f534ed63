"""The two stages of annotation, each a worker that handles one shard at a time. No engine is known here.

    Tokenize: the records of a shard -> .work/tokens/part-k.arrow, and what the shard adds to the fits
    Score:    that file              -> part-k.parquet, with every score column, and its record

A worker is built once in each process from a picklable description and then called for many shards. Both stages write
whole files under names that depend on the shard alone, so doing a shard twice is harmless.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from annotate.groupers.base import Grouper
from annotate.records.conversations import DocumentError, to_conversation
from annotate.records.readers import RawRecord, Reject
from annotate.run.workspace import ShardRecord, Workspace
from annotate.tokens.batch import TokenBatch
from annotate.tokens.target import load_target
from annotate.tokens.templates import Segment, make_template
from common.errors import UserError
from common.files import atomic_path, read_json, write_json
from common.manifest import Kind
from common.shards import check_shard, list_of, shard_name, shard_schema, write_shard


@dataclass(frozen=True)
class RecordShard:
    """The records of one shard, with their ids."""

    index: int
    records: list[RawRecord]
    record_ids: list[str]


@dataclass
class TokenizedShard:
    """What the first stage says of a shard."""

    index: int
    documents: int
    tokens: int
    truncated: int
    source_rows: int
    rejects: list[Reject]
    counts: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)  # by grouper that is to be fitted


@dataclass(frozen=True)
class TokenizeWorker:
    """Builds `Tokenize` in a worker process."""

    out: Path
    tokenizer: str
    revision: str | None
    template: str
    format_name: str
    max_length: int
    with_spans: bool
    fits: tuple[Grouper, ...]  # groupers that need counts

    def __call__(self) -> "Tokenize":
        return Tokenize(self)


class Tokenize:
    """Turns records into tokens."""

    def __init__(self, job: TokenizeWorker):
        self.job = job
        self.workspace = Workspace(job.out)
        self.target = load_target(job.tokenizer, job.revision)
        self.template = make_template(job.template, self.target.tokenizer)

    def __call__(self, shard: RecordShard) -> TokenizedShard:
        """Tokenize one shard, write it, and count its terms; a shard that is already there is only counted."""
        path = self.workspace.token_path(shard.index)
        sidecar = path.with_suffix(".json")
        if path.is_file() and sidecar.is_file() and read_json(sidecar)["with_spans"] >= self.job.with_spans:
            batch, facts = read_tokens(path), read_json(sidecar)
            truncated, rejects = facts["truncated"], [Reject(**reject) for reject in facts["rejects"]]
        else:
            batch, truncated, rejects = self._tokenize(shard)
            sidecar.unlink(missing_ok=True)
            write_tokens(path, batch)
            facts = {"with_spans": self.job.with_spans, "truncated": truncated}
            write_json(sidecar, {**facts, "rejects": [vars(reject) for reject in rejects]})
        counts = {grouper.name: grouper.count(batch) for grouper in self.job.fits}
        return TokenizedShard(shard.index, len(batch), batch.num_tokens, truncated, len(shard.records), rejects, counts)

    def _tokenize(self, shard: RecordShard) -> tuple[TokenBatch, int, list[Reject]]:
        documents: list[list[Segment]] = []
        kept: list[tuple[str, int]] = []
        rejects: list[Reject] = []
        for record, document_id in zip(shard.records, shard.record_ids, strict=True):
            try:
                if record.unreadable is not None:
                    raise DocumentError("unreadable", record.unreadable)
                documents.append(self.template(to_conversation(record.value, self.job.format_name)))
                kept.append((document_id, record.source_row))
            except DocumentError as error:
                rejects.append(Reject(record.source_row, error.reason, str(error)))
        result = self.target.tokenize(
            documents, [i for i, _ in kept], [row for _, row in kept], self.job.max_length, self.job.with_spans
        )
        message = f"no supervised token is left after truncation to {self.job.max_length} tokens."
        rejects += [Reject(row, "no_supervised_token", message) for row in result.unsupervised]
        return result.batch, result.num_truncated, rejects


@dataclass(frozen=True)
class ScoreWorker:
    """Builds `Score` in a worker process."""

    out: Path
    groupers: tuple[Grouper, ...]  # in column order

    def __call__(self) -> "Score":
        return Score(self)


class Score:
    """Turns tokens into a finished shard."""

    def __init__(self, job: ScoreWorker):
        self.workspace = Workspace(job.out)
        self.groupers = job.groupers
        for grouper in self.groupers:
            if grouper.needs_fit:
                grouper.load(self.workspace.state)

    def __call__(self, tokenized: TokenizedShard) -> ShardRecord:
        """Score one shard and write it; columns that the existing shard holds are taken over as they are."""
        batch = read_tokens(self.workspace.token_path(tokenized.index))
        rejects = list(tokenized.rejects)
        record_path = self.workspace.record_path(tokenized.index)
        old_record, old_columns = self._existing(record_path)
        counters: dict[str, dict[str, float]] = {}
        if old_record is not None:
            counters.update(old_record.shard.counters)
            gone = {reject.source_row for reject in old_record.rejects}
            rejects = list(old_record.rejects)
            batch = batch.select(np.flatnonzero(~np.isin(batch.source_rows, list(gone))))
            if not np.array_equal(old_columns.pop("input_ids"), batch.input_ids):
                raise UserError(
                    f"{self.workspace.out}: shard {tokenized.index} holds other tokens than the source gives now. "
                    "The installed tokenizers version may differ; annotate into an empty directory."
                )
        kinds: dict[str, Kind] = {}
        columns: dict[str, np.ndarray] = {}
        rejected: dict[int, Reject] = {}
        for grouper in self.groupers:
            kinds.update(grouper.columns)
            if all(name in old_columns for name in grouper.columns):
                columns.update({name: old_columns[name] for name in grouper.columns})
                continue
            scores = grouper.score(batch)
            counters[grouper.name] = scores.counters
            columns.update(scores.columns)
            for document, message in scores.rejects.items():
                row = int(batch.source_rows[document])
                rejected[document] = Reject(row, f"{grouper.name}_failed", message)
        self._check(columns, kinds, batch, rejected)
        if rejected:
            tokens = ~np.isin(batch.document_index, list(rejected))
            columns = {name: values[tokens] for name, values in columns.items()}
            batch = batch.select(np.array([i for i in range(len(batch)) if i not in rejected], dtype=np.int64))
        info = write_shard(
            self.workspace.out / shard_name(tokenized.index),
            to_table(batch, columns, kinds),
            supervised_tokens=int(batch.supervised.sum()),
            source_rows=tokenized.source_rows,
            truncated=tokenized.truncated,
            counters=counters,
        )
        record = ShardRecord(info, kinds, rejects + list(rejected.values()))
        record.save(record_path)
        self.workspace.token_path(tokenized.index).unlink()
        self.workspace.token_path(tokenized.index).with_suffix(".json").unlink()
        return record

    def _existing(self, record_path: Path) -> tuple[ShardRecord | None, dict[str, np.ndarray]]:
        """Return the record and the columns of the shard as it is, if it is what its record says."""
        import pyarrow.parquet as pq

        if not record_path.is_file():
            return None, {}
        record = ShardRecord.load(record_path)
        if check_shard(self.workspace.out, record.shard) is not None:
            return None, {}
        names = ["input_ids", *record.columns]
        table = pq.read_table(self.workspace.out / record.shard.file, columns=names)
        return record, {name: table[name].combine_chunks().flatten().to_numpy() for name in names}

    def _check(
        self, columns: dict[str, np.ndarray], kinds: dict[str, Kind], batch: TokenBatch, rejected: dict[int, Reject]
    ) -> None:
        """Every token gets a defined, finite score from every grouper (DESIGN: section 4)."""
        kept = ~np.isin(batch.document_index, list(rejected))
        for name in kinds:
            values = columns[name]
            assert values.shape == (batch.num_tokens,), f"{name}: {values.shape}"
            assert values.dtype == np.float32, f"{name}: {values.dtype}"
            assert np.isfinite(values[kept]).all(), f"{name}: a score is not finite"


def to_table(batch: TokenBatch, columns: dict[str, np.ndarray], kinds: dict[str, Kind]) -> pa.Table:
    """Return the Arrow table of a shard; the flat arrays are not copied."""
    arrays = [
        pa.array(batch.document_ids, pa.string()),
        pa.array(batch.source_rows, pa.int64()),
        pa.array(batch.texts, pa.string()),
        _ragged(batch, batch.input_ids, pa.int32()),
        _ragged(batch, batch.supervised, pa.bool_()),
        *(_ragged(batch, columns[name], pa.float32()) for name in kinds),
    ]
    return pa.Table.from_arrays(arrays, schema=shard_schema(kinds))


def _ragged(batch: TokenBatch, values: np.ndarray, value_type: pa.DataType) -> pa.ListArray:
    """Return one list a document."""
    offsets = pa.array(batch.offsets.astype(np.int32))
    return pa.ListArray.from_arrays(offsets, pa.array(values, value_type), type=list_of(value_type))


def write_tokens(path: Path, batch: TokenBatch) -> None:
    """Write a batch as an uncompressed Arrow file, atomically."""
    table = to_table(batch, {}, {})
    if batch.spans is not None:
        for side, name in enumerate(("start", "end")):
            column = np.ascontiguousarray(batch.spans[:, side])
            table = table.append_column(name, _ragged(batch, column, pa.int32()))
    with (
        atomic_path(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as writer,
    ):
        writer.write_table(table)


def read_tokens(path: Path) -> TokenBatch:
    """Read what `write_tokens` wrote."""
    with pa.memory_map(str(path)) as source:
        return from_table(pa.ipc.open_file(source).read_all())


def from_table(table: pa.Table) -> TokenBatch:
    """Return the batch that a table of tokens or of a shard holds."""

    def flat(name: str) -> Any:
        return table[name].combine_chunks().flatten()

    lengths = table["input_ids"].combine_chunks().value_lengths().to_numpy()
    spans = None
    if "start" in table.column_names:
        spans = np.stack([flat("start").to_numpy(), flat("end").to_numpy()], axis=1)
    return TokenBatch(
        document_ids=table["document_id"].to_pylist(),
        source_rows=table["source_row"].to_numpy(),
        texts=table["text"].to_pylist(),
        input_ids=flat("input_ids").to_numpy(),
        supervised=flat("supervised").to_numpy(zero_copy_only=False),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        spans=spans,
    )
