"""Token batches as Arrow tables: the rows of shards, and the files of tokenized documents between two stages.

What enters: a `TokenBatch`, with or without score columns. What leaves: an Arrow table with the schema of a shard, or a
file in `.work/tokens/` that also keeps character spans and what the first stage found out. And back.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from annotate.tokens.batch import TokenBatch
from common.manifest import Kind
from common.shards import list_of, shard_schema
from common.storage import Location

FACTS = b"sft_go.facts"
COUNTED = ("source_row", "input_ids", "supervised")  # what counting reads: a batch without ids and texts


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


def from_table(table: pa.Table) -> TokenBatch:
    """Return the batch that a table holds, of tokens or a shard; of `COUNTED` alone, one without ids and texts."""
    columns = table.column_names
    lengths = table["input_ids"].combine_chunks().value_lengths().to_numpy()
    spans = None
    if "start" in columns:
        spans = np.stack([flat(table, "start"), flat(table, "end")], axis=1)
    return TokenBatch(
        document_ids=table["document_id"].to_pylist() if "document_id" in columns else [],
        source_rows=table["source_row"].to_numpy(),
        texts=table["text"].to_pylist() if "text" in columns else [],
        input_ids=flat(table, "input_ids"),
        supervised=flat(table, "supervised"),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        spans=spans,
    )


def flat(table: pa.Table, name: str) -> np.ndarray:
    """Return the values of a list column, row after row."""
    return table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)


def write_tokens(place: Location, batch: TokenBatch, facts: dict[str, Any]) -> None:
    """Write a batch as an Arrow file, whole or not at all; compressed where it travels."""
    table = to_table(batch, {}, {})
    if batch.spans is not None:
        for side, name in enumerate(("start", "end")):
            column = np.ascontiguousarray(batch.spans[:, side])
            table = table.append_column(name, _ragged(batch, column, pa.int32()))
    table = table.replace_schema_metadata({FACTS: json.dumps(facts)})
    options = pa.ipc.IpcWriteOptions(compression=None if place.local is not None else "zstd")
    with (
        place.writing() as path,
        pa.OSFile(str(path), "wb") as sink,
        pa.ipc.new_file(sink, table.schema, options=options) as writer,
    ):
        writer.write_table(table)


def read_tokens(place: Location, columns: Sequence[str] | None = None) -> tuple[TokenBatch, dict[str, Any]]:
    """Read what `write_tokens` wrote, all columns by default.

    Raises:
        FileNotFoundError: there is no such file.
    """
    data = pa.BufferReader(place.read_bytes()) if place.local is None else pa.memory_map(str(place.local))
    with data as source:
        table = pa.ipc.open_file(source).read_all()
    return from_table(table.select(columns) if columns else table), json.loads(table.schema.metadata[FACTS])


def read_facts(place: Location) -> dict[str, Any] | None:
    """Return what the first stage found out of a shard, without its tokens; None where the shard is not tokenized."""
    try:
        with place.open() as source, pa.ipc.open_file(source) as file:
            return json.loads(file.schema.metadata[FACTS])
    except FileNotFoundError:
        return None


def join(batches: Sequence[TokenBatch]) -> TokenBatch:
    """Return the documents of several batches as one batch."""
    if len(batches) == 1:
        return batches[0]
    starts = np.cumsum([0] + [batch.num_tokens for batch in batches])
    offsets = [batch.offsets[1:] + start for batch, start in zip(batches, starts, strict=False)]
    spans = [batch.spans for batch in batches if batch.spans is not None]
    return TokenBatch(
        document_ids=[name for batch in batches for name in batch.document_ids],
        source_rows=np.concatenate([batch.source_rows for batch in batches]),
        texts=[text for batch in batches for text in batch.texts],
        input_ids=np.concatenate([batch.input_ids for batch in batches]),
        supervised=np.concatenate([batch.supervised for batch in batches]),
        offsets=np.concatenate([[0], *offsets]).astype(np.int64),
        spans=np.concatenate(spans) if spans else None,
    )
