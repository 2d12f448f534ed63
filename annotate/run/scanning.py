"""The plan's workers: hash the source, count its records, mark where they begin.

    HashPieces: bytes of a file, or rows of a hub dataset -> their SHA-256
    ListRanges: a file -> its ranges
    ScanRanges: a range -> the number of its records, .work/source/marks-r.npz and hashes-r.bin

What leaves each for the driver is a few numbers. Next: `annotate.run.repeats` finds the records that repeat.
"""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from annotate.records.ranges import (
    HubData,
    SourceRange,
    begin_of,
    copy_groups,
    lines_of,
    open_parquet,
    read_range,
)
from annotate.records.sources import Source, canonical_json, record_digest
from common.storage import Location

MARK_ROWS = 64  # a mark every so many rows
READ_BYTES = 1 << 20
BUCKETS = 256  # hashes are stored in buckets of their first byte, so that a part of all hashes can be read by itself
HASH_BYTES = 10
HASHED = np.dtype([("hash", f"V{HASH_BYTES}"), ("row", "<u4")])
SAMPLE_ROWS = 256
COPY_BYTES = 16 << 20  # row groups above this are copied, so that a shard need not read all of one


def marks_of(source: Location, number: int) -> Location:
    """Return the file of a range's marks."""
    return source / f"marks-{number:05d}.npz"


def hashes_of(source: Location, number: int) -> Location:
    """Return the file of a range's hashes: `HASHED`, by bucket, in each by row."""
    return source / f"hashes-{number:05d}.bin"


def write_arrays(place: Location, **arrays: np.ndarray) -> None:
    """Write named arrays as one .npz file."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    place.write_bytes(buffer.getvalue())


def read_arrays(place: Location) -> dict[str, np.ndarray]:
    """Read what `write_arrays` wrote. Raises FileNotFoundError."""
    with np.load(io.BytesIO(place.read_bytes())) as arrays:
        return dict(arrays)


def bucketed(hashes: bytes, numbers: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return hashes with their numbers as `HASHED`, by bucket, and where each bucket begins, int64 [BUCKETS + 1]."""
    stored = np.empty(len(numbers), dtype=HASHED)
    stored["hash"] = np.frombuffer(hashes, dtype=f"V{HASH_BYTES}")
    stored["row"] = numbers
    first = np.frombuffer(hashes, dtype=np.uint8)[::HASH_BYTES]
    return stored[np.argsort(first, kind="stable")], np.concatenate(
        [[0], np.cumsum(np.bincount(first, minlength=BUCKETS))]
    )


def read_hashes(place: Location, buckets: np.ndarray, low: int, high: int) -> np.ndarray:
    """Read the buckets [low, high) of a file of `HASHED`."""
    start, stop = int(buckets[low]), int(buckets[high])
    with place.open() as file:
        file.seek(start * HASHED.itemsize)
        return np.frombuffer(file.read((stop - start) * HASHED.itemsize), dtype=HASHED)


@dataclass(frozen=True)
class HashPieces:
    """Builds the worker that hashes."""

    def __call__(self) -> "HashPieces":
        return self

    def run(self, item: tuple[Location | HubData, int, int]) -> bytes:
        """Return the SHA-256 of bytes [start, stop) of a file, or of rows [start, stop) of a hub dataset."""
        place, start, stop = item
        digest = hashlib.sha256()
        if isinstance(place, HubData):
            dataset = place.load()
            for row in range(start, stop):
                digest.update(canonical_json(dataset[row]) + b"\n")
            return digest.digest()
        with place.open() as file:
            file.seek(start)
            left = stop - start
            while left > 0 and (data := file.read(min(READ_BYTES, left))):
                digest.update(data)
                left -= len(data)
        return digest.digest()


@dataclass(frozen=True)
class ListRanges:
    """Builds the worker that cuts files into ranges."""

    source: Source

    def __call__(self) -> "ListRanges":
        return self

    def run(self, number: int) -> list[SourceRange]:
        """Return the ranges of one file."""
        return self.source.ranges_of(number)


@dataclass(frozen=True)
class Scanned:
    """What a scan says of a range."""

    rows: int
    lines: int
    bytes: int  # of the records, as they stand in a text file, or as they would in one
    copied: bool


@dataclass(frozen=True)
class ScanRanges:
    """Builds the worker that reads every record once."""

    source: Location
    limit: int | None  # records of the source that are wanted: none of a range can be beyond it

    def __call__(self) -> "ScanRanges":
        return self

    def run(self, part: SourceRange) -> Scanned:
        """Scan one range, and write its marks and hashes."""
        mark = begin_of(part)
        hashes = bytearray()
        marks: list[tuple[int, int, int]] = []
        count, last_byte = 0, part.stop
        for count, row in enumerate(read_range(part, mark) if mark else (), start=1):
            if (count - 1) % MARK_ROWS == 0:
                marks.append((count - 1, row.byte, row.line))
            hashes += record_digest(row.value)
            if count == self.limit:
                last_byte = row.byte
                break
        table = np.array(marks, dtype=np.int64).reshape(-1, 3)
        stored, starts = bucketed(bytes(hashes), range(count))
        copied = self._copy(part)
        hashes_of(self.source, part.number).write_bytes(stored.tobytes())
        write_arrays(marks_of(self.source, part.number), marks=table, buckets=starts)
        return Scanned(count, lines_of(part), record_bytes(part, count, last_byte), copied)

    def _copy(self, part: SourceRange) -> bool:
        if part.kind != "parquet":
            return False
        with open_parquet(part.file) as file:
            groups = [file.metadata.row_group(i).total_byte_size for i in range(part.start, part.stop)]
        if max(groups, default=0) <= COPY_BYTES:
            return False
        copy_groups(part, self.source / f"copy-{part.number:05d}.arrow")
        return True


def record_bytes(part: SourceRange, rows: int, last_byte: int) -> int:
    """Return about how many bytes the first `rows` records of a range have: as text, or decompressed."""
    if part.kind == "hub":
        dataset, sample = part.hub.load(), min(rows, SAMPLE_ROWS)
        held = sum(len(canonical_json(dataset[i])) for i in range(part.start, part.start + sample))
        return held * rows // max(1, sample)
    if part.kind == "parquet":
        with open_parquet(part.file) as file:
            groups = [file.metadata.row_group(i) for i in range(part.start, part.stop)]
        total = sum(group.num_rows for group in groups)
        return sum(group.total_byte_size for group in groups) * rows // max(1, total)
    return last_byte - part.start
