"""Parquet shards: one explicit schema, one way to write them, one way to read them.

What enters: Arrow tables whose list columns have equal lengths in every row. What leaves: `part-00000.parquet` and so
on, byte-identical for equal tables; and, for the trainer, the rows of a complete and verified directory.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import UserError
from common.files import sha256_file
from common.hints import did_you_mean
from common.manifest import FileInfo, Kind, Manifest, ShardInfo, read_manifest
from common.storage import Location, Place, locate


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


def write_shard(path: Place, table: pa.Table, supervised_tokens: int, **facts: Any) -> ShardInfo:
    """Write one shard, whole or not at all, and return its entry for the manifest.

    The bytes depend on the table alone (and on the pyarrow version): one row group, zstd, no time stamps.

    Args:
        path: where the shard goes.
        table: rows with the schema `shard_schema` gives.
        supervised_tokens: their number in the table.
        facts: further fields of `ShardInfo`.
    """
    path = locate(path)
    with path.writing() as temporary:
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


def read_table(path: Place, columns: Sequence[str] | None = None, sha256: str | None = None) -> pa.Table:
    """Read a shard, all columns by default, in the order wanted. A file of a store is read in one piece.

    Args:
        sha256: what the file must be; None: not checked.

    Raises:
        UserError: the file is missing, is no Parquet file, lacks a column, or is another than `sha256` says.
    """
    path = locate(path)
    try:
        if path.local is not None and sha256 is None:
            return pq.read_table(path.local, columns=list(columns) if columns else None)
        data = path.read_bytes()
        if sha256 is not None and (digest := hashlib.sha256(data).hexdigest()) != sha256:
            raise UserError(_changed(path, sha256, digest))
        return pq.read_table(pa.BufferReader(_owned(data)), columns=list(columns) if columns else None)
    except FileNotFoundError as error:
        raise UserError(f"{path}: expected a shard, found no such file.") from error
    except (pa.ArrowInvalid, pa.ArrowTypeError, OSError) as error:
        raise UserError(f"{path}: expected a shard, found what cannot be read ({error}).") from error


def _owned(data: bytes) -> pa.Buffer:
    """Return a copy that pyarrow's threads may let go of when the interpreter has ended.

    They end after the table is there; one that then has to release a Python object aborts the process (one short
    command in twelve did).
    """
    sink = pa.BufferOutputStream()
    sink.write(data)
    return sink.getvalue()


def _changed(path: Location, expected: str, found: str) -> str:
    return f"{path}: expected SHA-256 {expected[:12]}…, found {found[:12]}…: the file's content changed."


def check_size(directory: Place, file: ShardInfo | FileInfo, sizes: Mapping[str, int] | None = None) -> str | None:
    """Return what is wrong with a file's size, or None; `sizes` is what `directory.files()` gave, to ask once."""
    path = locate(directory) / file.file
    if sizes is None:
        sizes = {file.file: path.size()} if path.is_file() else {}
    if file.file not in sizes:
        return f"{path}: expected a file of {file.bytes} bytes, found no such file."
    if sizes[file.file] != file.bytes:
        return f"{path}: expected {file.bytes} bytes, found {sizes[file.file]}: the file is truncated or changed."
    return None


def check_shard(directory: Place, file: ShardInfo | FileInfo, sizes: Mapping[str, int] | None = None) -> str | None:
    """Return what is wrong with a file, or None when it is exactly what the manifest says."""
    problem = check_size(directory, file, sizes)
    if problem is not None:
        return problem
    path = locate(directory) / file.file
    try:
        digest, _ = path.sha256()
    except OSError as error:
        return f"{path}: cannot be read ({error.strerror or error})."
    return None if digest == file.sha256 else _changed(path, file.sha256, digest)


def refuse_damage(directory: Place, problems: list[str]) -> None:
    """Raise one `UserError` that names every damaged file and says how to mend them; do nothing without problems."""
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise UserError(
            f"{directory}: {len(problems)} problem(s):\n{listed}\n"
            f"`annotate verify --repair {directory}` makes again what can be made again; so does the same "
            "`annotate run` command, from its source."
        )


class ShardDirectory:
    """A complete shard directory, here or on a store.

    Attributes:
        path: where it is.
        manifest: what it holds.
        digest: SHA-256 of the manifest: it names the exact shards.
        notes: sentences for the user: the manifest's copy is read.

    Raises:
        UserError: a directory is missing, unfinished, or does not agree with its manifest.
    """

    def __init__(self, path: Place, verify: bool = True):
        """Open `path`.

        Args:
            verify: compare every shard with the manifest: on a disk its size and SHA-256 at once; on a store the sizes
                at once, by one listing, and the SHA-256 of a shard when it is read, so that nothing is fetched twice.
        """
        self.path: Location = locate(path)
        self.manifest: Manifest
        self.manifest, self.digest, note = read_manifest(self.path)
        self.notes = [note] if note else []
        self.verify = verify
        if verify:
            sizes = self.path.files()
            check = check_shard if self.path.local is not None else check_size
            shards = self.manifest.shards
            refuse_damage(self.path, [problem for s in shards if (problem := check(self.path, s, sizes))])

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
            table = self.table(shard, columns)
            yield table.slice(0, remaining)
            remaining -= table.num_rows

    def table(self, shard: ShardInfo, columns: Sequence[str] | None = None) -> pa.Table:
        """Read one shard."""
        unchecked = self.verify and self.path.local is None
        return read_table(self.path / shard.file, columns, shard.sha256 if unchecked else None)

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
                f"{self.path} holds the score columns {held}, not {name!r}.{did_you_mean(name, self.columns)} "
                f"Add it with `annotate run --grouper {name} … --out {self.path}`, or name another with --grouper."
            )
        return name
