"""Records that equal an earlier one: their number is part of their documents' ids.

What enters: the hashes of all records, in buckets of their first byte, so that one worker takes the records of some
buckets over the whole source. What leaves: `.work/source/repeats-<block>-<part>.npz`, the rows that have equal records
before them and how many; rows with none before them, nearly all, are in no file. `SourceNotes` reads that again, and
the marks of `annotate.run.scanning`. Next: `annotate.run.tokenizing`.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from annotate.records.ranges import Mark, SourceRange
from annotate.run.scanning import BUCKETS, HASH_BYTES, HASHED, hashes_of, marks_of, read_arrays, write_arrays
from common.storage import Location

BLOCK_RANGES = 32  # repeats are stored by blocks of ranges


def repeats_of(source: Location, block: int, part: int) -> Location:
    """Return the file of the repeated records of a block of ranges, of one part of the hashes."""
    return source / f"repeats-{block:05d}-{part:03d}.npz"


@dataclass(frozen=True)
class FindRepeats:
    """Builds the worker that finds records which equal an earlier one."""

    source: Location
    rows: tuple[int, ...]  # records of each range
    parts: int  # all hashes are divided into so many, by their first byte

    def __call__(self) -> "FindRepeats":
        return self

    def run(self, part: int) -> int:
        """Find the repeats of one part; return their number."""
        low, high = part * BUCKETS // self.parts, (part + 1) * BUCKETS // self.parts
        firsts = np.concatenate([[0], np.cumsum(self.rows)])
        pieces, rows = [], []
        for number, count in enumerate(self.rows):
            if count == 0:
                continue
            buckets = read_arrays(marks_of(self.source, number))["buckets"]
            start, stop = int(buckets[low]), int(buckets[high])
            with hashes_of(self.source, number).open() as file:
                file.seek(start * HASHED.itemsize)
                data = file.read((stop - start) * HASHED.itemsize)
            stored = np.frombuffer(data, dtype=HASHED)
            below = stored["row"] < count  # a range that a limit cuts is scanned further
            pieces.append(stored["hash"][below])
            rows.append(stored["row"][below].astype(np.int64) + firsts[number])
        if not pieces:
            return 0
        hashes = np.ascontiguousarray(np.concatenate(pieces)).view(np.uint8).reshape(-1, HASH_BYTES)
        found_rows, occurrences = repeated(hashes, np.concatenate(rows))
        blocks = (np.searchsorted(firsts, found_rows, side="right") - 1) // BLOCK_RANGES
        for block in np.unique(blocks):
            here = blocks == block
            write_arrays(
                repeats_of(self.source, int(block), part), rows=found_rows[here], occurrences=occurrences[here]
            )
        return len(found_rows)


def repeated(hashes: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows whose hash an earlier row has, ascending, and how many earlier rows have it.

    Args:
        hashes: uint8 [n, HASH_BYTES].
        rows: int64 [n], distinct.
    """
    head = np.ascontiguousarray(hashes[:, :8]).view("<u8").ravel()
    tail = np.ascontiguousarray(hashes[:, 8:]).view("<u2").ravel()
    order = np.lexsort((rows, tail, head))
    head, tail, rows = head[order], tail[order], rows[order]
    new = np.ones(len(rows), dtype=bool)
    new[1:] = (head[1:] != head[:-1]) | (tail[1:] != tail[:-1])
    places = np.arange(len(rows))
    occurrences = places - np.maximum.accumulate(np.where(new, places, 0))
    again = np.flatnonzero(occurrences)
    again = again[np.argsort(rows[again])]
    return rows[again], occurrences[again]


class SourceNotes:
    """What the scan has written, read range by range; the last ones stay in memory, since shards are neighbours."""

    def __init__(self, source: Location, repeat_parts: int):
        self.source = source
        self.repeat_parts = repeat_parts
        self._marks = lru_cache(maxsize=4)(lambda number: read_arrays(marks_of(source, number))["marks"])
        self._repeats = lru_cache(maxsize=4 * repeat_parts)(self._read_repeats)

    def place_of(self, part: SourceRange, row: int) -> tuple[Mark, int]:
        """Return the mark from which to read a row of a range, and how many rows to skip from there."""
        if part.kind in ("parquet", "hub"):
            return Mark(row), 0
        marks = self._marks(part.number)
        at = int(np.searchsorted(marks[:, 0], row, side="right")) - 1
        mark = Mark(*(int(value) for value in marks[at]))
        return mark, row - mark.row

    def repeats(self, number: int, first: int, stop: int) -> dict[int, int]:
        """Return how many equal records come before rows [first, stop) of the source, where there are any.

        Args:
            number: the range that the rows belong to.
        """
        found: dict[int, int] = {}
        for part in range(self.repeat_parts):
            rows, occurrences = self._repeats(number // BLOCK_RANGES, part)
            here = slice(*np.searchsorted(rows, [first, stop]))
            found.update(zip(rows[here].tolist(), occurrences[here].tolist(), strict=True))
        return found

    def _read_repeats(self, block: int, part: int) -> tuple[np.ndarray, np.ndarray]:
        try:
            arrays = read_arrays(repeats_of(self.source, block, part))
        except FileNotFoundError:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        return arrays["rows"], arrays["occurrences"]
