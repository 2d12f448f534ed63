"""Parquet shards: one explicit schema, one way to write them, one way to read them.

What enters: Arrow tables whose list columns have equal lengths in every row. What leaves: `part-00000.parquet` and so
on, byte-identical for equal tables; and, for the trainer, the rows of a complete and verified directory.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import UserError
from common.files import atomic_path, sha256_file
from common.manifest import Kind, Manifest, ShardInfo, load_manifest


def list_of(value_type: pa.DataType) -> pa.DataType:
    """Return a list type whose element has the name that Parquet gives it, so that a round trip changes nothing."""
    return pa.list_(pa.field("element", value_type))


BASE_FIELDS = (
    pa.field("document_id", pa.string(), nullable=False),
    pa.field("source_row", pa.int64(), nullable=False),
    pa.field("text", pa.string(), nullable=False),
    pa.field("input_ids", list_of(pa.int32()), nullable=False),
    pa.field("supervised", list_of(pa.bool_()), nullable=False),
)
KIND_KEY = b"sft_go.kind"  # Parquet field metadata of a score column: "importance" or "reference_loss"


def shard_name(index: int) -> str:
    """Return the file name of shard `index`."""
    return f"part-{index:05d}.parquet"


def shard_schema(columns: dict[str, Kind]) -> pa.Schema:
    """Return the schema of a shard that holds these score columns."""
    scores = [pa.field(name, list_of(pa.float32()), False, {KIND_KEY: kind}) for name, kind in columns.items()]
    return pa.schema([*BASE_FIELDS, *scores])


def column_kinds(schema: pa.Schema) -> dict[str, Kind]:
    """Return the score columns of a schema with their kinds."""
    return {f.name: f.metadata[KIND_KEY].decode() for f in schema if f.metadata and KIND_KEY in f.metadata}


def write_shard(path: Path, table: pa.Table, supervised_tokens: int, **facts: Any) -> ShardInfo:
    """Write one shard under a temporary name, rename it, and return its entry for the manifest.

    The bytes depend on the table alone (and on the pyarrow version): one row group, zstd, no time stamps.

    Args:
        path: where the shard goes.
        table: rows with the schema `shard_schema` gives.
        supervised_tokens: their number in the table.
        facts: further fields of `ShardInfo`.
    """
    with atomic_path(path) as temporary:
        pq.write_table(
            table,
            temporary,
            compression="zstd",
            version="2.6",
            row_group_size=max(1, table.num_rows),
            use_dictionary=["input_ids.list.element"],
            write_statistics=["source_row"],
        )
        digest, size = sha256_file(temporary), temporary.stat().st_size
    tokens = sum(len(chunk.flatten()) for chunk in table["input_ids"].chunks)
    return ShardInfo(path.name, table.num_rows, tokens, supervised_tokens, size, digest, **facts)


def check_shard(directory: Path, shard: ShardInfo) -> str | None:
    """Return what is wrong with a shard file, or None when it is exactly what the manifest says."""
    path = directory / shard.file
    if not path.is_file():
        return f"{path}: expected a shard of {shard.bytes} bytes, found no such file."
    if path.stat().st_size != shard.bytes:
        return f"{path}: expected {shard.bytes} bytes, found {path.stat().st_size}: the shard is truncated or changed."
    digest = sha256_file(path)
    if digest != shard.sha256:
        return f"{path}: expected SHA-256 {shard.sha256[:12]}…, found {digest[:12]}…: the shard's content changed."
    return None


def refuse_damage(directory: Path, problems: list[str]) -> None:
    """Raise one `UserError` that names every damaged shard and says how to mend them; do nothing without problems."""
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise UserError(
            f"{directory}: {len(problems)} problem(s):\n{listed}\n"
            "Run the same `annotate run` command again: it makes damaged shards again and leaves the others."
        )


class ShardDirectory:
    """A complete shard directory.

    Raises:
        UserError: a directory is missing, unfinished, or does not agree with its manifest.
    """

    def __init__(self, path: str | Path, verify: bool = True):
        """Open `path`; with `verify`, compare every shard's size and SHA-256 with the manifest."""
        self.path = Path(path)
        self.manifest: Manifest = load_manifest(self.path)
        if verify:
            refuse_damage(self.path, [p for shard in self.manifest.shards if (p := check_shard(self.path, shard))])

    @property
    def columns(self) -> dict[str, Kind]:
        """Score columns with their kinds."""
        return self.manifest.columns

    def tables(self, columns: Sequence[str] | None = None, limit: int | None = None) -> Iterator[pa.Table]:
        """Yield one table a shard, in source order, with these columns (all by default).

        Args:
            columns: names of columns, in the order wanted.
            limit: stop after this many rows.
        """
        remaining = self.manifest.counts.documents if limit is None else limit
        for shard in self.manifest.shards:
            if remaining <= 0:
                return
            table = pq.read_table(self.path / shard.file, columns=list(columns) if columns else None)
            yield table.slice(0, remaining)
            remaining -= table.num_rows

    def resolve_column(self, name: str | None) -> str:
        """Return the score column to use: `name`, or the only one there is.

        Raises:
            UserError: the column is not there, or none was named and there are several.
        """
        held = ", ".join(self.columns) or "none"
        if name is None:
            if len(self.columns) == 1:
                return next(iter(self.columns))
            raise UserError(f"{self.path} holds the score columns {held}: name one with --grouper.")
        if name not in self.columns:
            raise UserError(
                f"{self.path} holds the score columns {held}, not {name!r}. "
                f"Add it with `annotate run --grouper {name} … --out {self.path}`, or name another with --grouper."
            )
        return name
