"""Ranges: what of the source one worker reads by itself, without those before it.

What enters: a `Source`. What leaves: `SourceRange`s in source order, of at most `RANGE_BYTES` where the format allows
it: bytes of JSON Lines, row groups of Parquet files, rows of a hub dataset; a JSON array or a CSV file, whose records
have no borders that can be seen from the middle, is one range. `read_range` streams a range's rows from its beginning
or from a mark that an earlier pass has left. Next: `annotate.run.scanning` makes that pass.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

from annotate.records.readers import READERS, Row, count_lines, first_line_from, is_array
from common.errors import UserError
from common.storage import Location

RANGE_BYTES = 64 << 20
RANGE_ROWS = 1 << 17  # of a hub dataset, whose rows have no size
BATCH_ROWS = 1024


@dataclass(frozen=True)
class HubData:
    """A dataset of the Hugging Face hub, which `datasets` keeps on each node, memory-mapped."""

    arguments: tuple[tuple[str, str], ...]  # of `datasets.load_dataset`
    revision: str | None

    def load(self) -> Any:
        """Return the dataset's split (train, unless the arguments name one), loaded once in each process."""
        return _load_dataset(self.arguments, self.revision)


@lru_cache(maxsize=2)
def _load_dataset(arguments: tuple[tuple[str, str], ...], revision: str | None) -> Any:
    import datasets

    return datasets.load_dataset(**{"split": "train", **dict(arguments)}, revision=revision)


@dataclass(frozen=True)
class SourceRange:
    """A part of the source.

    `start` and `stop` are bytes of a text file, row groups of a Parquet file, rows of a hub dataset.
    """

    number: int  # in source order
    kind: str  # "lines", "array", "csv", "parquet", "hub"
    place: Location | HubData
    start: int
    stop: int
    starts_file: bool = True
    share: float = 1.0  # of its records, chosen by their content; the others are passed over
    # What a first pass adds:
    rows: int = 0
    lines_before: int = 0  # of the file, for messages
    first_row: int = 0  # of the source
    copy: Location | None = None  # rows of large row groups, written so that they can be read from the middle

    @property
    def file(self) -> Location:
        """The file of a range that is not the hub's."""
        assert not isinstance(self.place, HubData)
        return self.place

    @property
    def hub(self) -> HubData:
        """The hub dataset of a range that is one's."""
        assert isinstance(self.place, HubData)
        return self.place


@dataclass(frozen=True)
class Mark:
    """A place inside a range where a row begins."""

    row: int = 0  # of the range
    byte: int = 0
    line: int = 0  # lines of the range before it


def file_ranges(place: Location, size: int, first_number: int) -> list[SourceRange]:
    """Cut a file into ranges."""
    ending = place.name.rpartition(".")[2].lower()
    if ending == "parquet":
        return _row_groups(place, first_number)
    kind = "csv" if ending in ("csv", "tsv") else "array" if ending == "json" and is_array(place) else "lines"
    if kind != "lines":
        return [SourceRange(first_number, kind, place, 0, size)]
    starts = range(0, max(1, size), RANGE_BYTES)
    return [
        SourceRange(first_number + i, kind, place, start, min(size, start + RANGE_BYTES), start == 0)
        for i, start in enumerate(starts)
    ]


def hub_ranges(data: HubData) -> list[SourceRange]:
    """Cut a hub dataset into ranges."""
    total = len(data.load())
    starts = range(0, total, RANGE_ROWS)
    return [SourceRange(i, "hub", data, a, min(total, a + RANGE_ROWS)) for i, a in enumerate(starts)]


def open_parquet(place: Location) -> Any:
    """Return a `pyarrow.parquet.ParquetFile`.

    Raises:
        UserError: the file is none.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(place.local if place.local is not None else place.open())
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{place}: expected a Parquet file, found something else ({error}).") from error


def _row_groups(place: Location, first_number: int) -> list[SourceRange]:
    """Gather row groups until they have `RANGE_BYTES`; one range at least."""
    with open_parquet(place) as file:
        sizes = [file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups)]
    ranges: list[SourceRange] = []
    start, held = 0, 0
    for group, size in enumerate(sizes):
        if held and held + size > RANGE_BYTES:
            ranges.append(SourceRange(first_number + len(ranges), "parquet", place, start, group, start == 0))
            start, held = group, 0
        held += size
    return [*ranges, SourceRange(first_number + len(ranges), "parquet", place, start, len(sizes), start == 0)]


def begin_of(part: SourceRange) -> Mark | None:
    """Return where the first row of a range of lines may begin; None where no row begins in it."""
    if part.kind != "lines":
        return Mark()
    byte = first_line_from(part.file, part.start)
    # The end of a line that began before the range lies in it.
    return Mark(byte=byte, line=int(byte > part.start)) if byte < part.stop else None


def lines_of(part: SourceRange) -> int:
    """Return the number of line ends among a range's own bytes; they are summed up for messages."""
    return count_lines(part.file, part.start, part.stop) if part.kind == "lines" else 0


def read_range(part: SourceRange, mark: Mark) -> Iterator[Row]:
    """Yield the rows of a range from a mark on. A Parquet file and a hub dataset skip to it by themselves."""
    if part.share == 1.0:
        yield from _read_all(part, mark)
        return
    # A mark counts the rows that are taken; where a range is skipped through by rows, it is read from its beginning.
    by_rows = part.kind in ("hub", "parquet")
    rows = (row for row in _read_all(part, Mark() if by_rows else mark) if is_taken(row.value, part.share))
    yield from islice(rows, mark.row if by_rows else 0, None)


def is_taken(value: Any, share: float) -> bool:
    """Tell whether a record belongs to a share of its source: by its content alone, so always the same ones."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    digest = hashlib.sha256(b"share" + text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def _read_all(part: SourceRange, mark: Mark) -> Iterator[Row]:
    if part.kind == "hub":
        for index in range(part.start + mark.row, part.stop):
            yield Row(part.hub.load()[index])
        return
    if part.copy is not None:
        yield from _read_copy(part.copy, mark.row)
        return
    if part.kind == "parquet":
        yield from _read_groups(part, mark.row)
        return
    stop = part.stop if part.kind == "lines" else None
    yield from READERS[part.kind](part.file, mark.byte, stop, part.lines_before + mark.line)


def _read_groups(part: SourceRange, skip: int) -> Iterator[Row]:
    """Yield the rows of row groups; those that are skipped whole are not read."""
    with open_parquet(part.file) as file:
        groups = list(range(part.start, part.stop))
        while groups and skip >= file.metadata.row_group(groups[0]).num_rows:
            skip -= file.metadata.row_group(groups.pop(0)).num_rows
        for batch in file.iter_batches(BATCH_ROWS, row_groups=groups) if groups else ():
            taken = batch.slice(min(skip, len(batch)))
            skip -= len(batch) - len(taken)
            for value in taken.to_pylist():
                yield Row(value)


def _read_copy(copy: Location, skip: int) -> Iterator[Row]:
    import pyarrow as pa

    with copy.open() as source, pa.ipc.open_file(source) as file:
        for index in range(skip // BATCH_ROWS, file.num_record_batches):
            batch = file.get_batch(index)
            for value in batch.slice(max(0, skip - index * BATCH_ROWS)).to_pylist():
                yield Row(value)


def copy_groups(part: SourceRange, copy: Location) -> None:
    """Write the rows of a range of row groups in batches of `BATCH_ROWS`, which can be read one by one."""
    import pyarrow as pa

    with open_parquet(part.file) as file, copy.writing() as path:
        batches = file.iter_batches(BATCH_ROWS, row_groups=list(range(part.start, part.stop)))
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.OSFile(str(path), "wb") as sink:
            writer = None
            for batch in _rebatch(batches):
                writer = writer or pa.ipc.new_file(sink, batch.schema, options=options)
                writer.write_batch(batch)
            if writer is None:
                writer = pa.ipc.new_file(sink, file.schema_arrow, options=options)
            writer.close()


def _rebatch(batches: Iterator[Any]) -> Iterator[Any]:
    """Yield batches of exactly `BATCH_ROWS` rows, the last one excepted; Parquet's end with row groups."""
    import pyarrow as pa

    held: list[Any] = []
    for batch in batches:
        held.append(batch)
        while sum(map(len, held)) >= BATCH_ROWS:
            table = pa.Table.from_batches(held).combine_chunks()
            yield table.slice(0, BATCH_ROWS).combine_chunks().to_batches()[0]
            held = table.slice(BATCH_ROWS).to_batches()
    if sum(map(len, held)):
        yield pa.Table.from_batches(held).combine_chunks().to_batches()[0]


@dataclass(frozen=True)
class Piece:
    """Rows [start, stop) of one range."""

    part: SourceRange
    start: int
    stop: int
