"""Records that equal an earlier one: their number is part of their documents' ids.

What enters: the hashes of all records, in buckets of their first byte, so that one worker takes the records of some
buckets over the whole source; and where the source is appended to finished shards, the hashes that their documents' ids
begin with (`HashHeld`): records before its own. What leaves: `.work/source/repeats-<block>-<part>.npz`, the rows that
have equal records before them and how many; rows with none before them, nearly all, are in no file. `SourceNotes` reads
that again, and the marks of `annotate.run.scanning`. Next: `annotate.run.tokenizing`.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from annotate.records.ranges import Mark, SourceRange
from annotate.run.checking import HeldBlock
from annotate.run.scanning import (
    BUCKETS,
    HASH_BYTES,
    bucketed,
    hashes_of,
    marks_of,
    read_arrays,
    read_hashes,
    write_arrays,
)
from annotate.run.tables import read_tokens
from annotate.run.workspace import Workspace
from common.errors import UserError
from common.shards import read_table
from common.storage import Location, StorageError

BLOCK_RANGES = 32  # repeats are stored by blocks of ranges


def repeats_of(source: Location, block: int, part: int) -> Location:
    """Return the file of the repeated records of a block of ranges, of one part of the hashes."""
    return source / f"repeats-{block:05d}-{part:03d}.npz"


def held_of(source: Location, block: int) -> tuple[Location, Location]:
    """Return the files of the hashes of a block of finished shards, and of where their buckets begin."""
    return source / f"held-{block:05d}.bin", source / f"held-{block:05d}.npz"


@dataclass(frozen=True)
class HashHeld:
    """Builds the worker that reads the hashes of finished shards from their documents' ids."""

    workspace: Workspace

    def __call__(self) -> "HashHeld":
        return self

    def run(self, item: HeldBlock) -> dict[int, str]:
        """Write the hashes of a block, each with its occurrence number; return what is wrong, by shard number."""
        names: list[str] = []
        problems = {}
        for index, shard in enumerate(item.shards, start=item.first):
            try:
                names += read_table(self.workspace.out / shard.file, ["document_id"], shard.sha256)[0].to_pylist()
            except StorageError:
                raise  # the shard may be whole
            except UserError as error:
                try:  # its source may have been read again already
                    names += read_tokens(self.workspace.tokens(index))[0].document_ids
                except FileNotFoundError:
                    problems[index] = str(error)
        if problems:
            return problems
        parsed = [name.partition("-") for name in names]
        hashes = b"".join(bytes.fromhex(content) for content, _, _ in parsed)
        # A document that was split has the number of its piece behind the occurrence.
        stored, starts = bucketed(hashes, [int(rest.partition(".")[0]) for _, _, rest in parsed])
        data, buckets = held_of(self.workspace.source, item.number)
        data.write_bytes(stored.tobytes())
        write_arrays(buckets, buckets=starts)
        return {}


@dataclass(frozen=True)
class FindRepeats:
    """Builds the worker that finds records which equal an earlier one."""

    source: Location
    rows: tuple[int, ...]  # records of each range
    parts: int  # all hashes are divided into so many, by their first byte
    held_blocks: int = 0  # of finished shards, whose records come before

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
            stored = read_hashes(hashes_of(self.source, number), buckets, low, high)
            below = stored["row"] < count  # a range that a limit cuts is scanned further
            pieces.append(stored["hash"][below])
            rows.append(stored["row"][below].astype(np.int64) + firsts[number])
        if not pieces:
            return 0
        before = self._held(low, high)
        rows = [np.arange(-len(before), 0), *rows]
        found_rows, occurrences = repeated(np.concatenate([before, *map(as_bytes, pieces)]), np.concatenate(rows))
        own = found_rows >= 0
        found_rows, occurrences = found_rows[own], occurrences[own]
        blocks = (np.searchsorted(firsts, found_rows, side="right") - 1) // BLOCK_RANGES
        for block in np.unique(blocks):
            here = blocks == block
            write_arrays(
                repeats_of(self.source, int(block), part), rows=found_rows[here], occurrences=occurrences[here]
            )
        return len(found_rows)

    def _held(self, low: int, high: int) -> np.ndarray:
        """Return the hashes of buckets [low, high) of finished shards, each as often as such records were there."""
        files = [held_of(self.source, block) for block in range(self.held_blocks)]
        stored = [read_hashes(data, read_arrays(buckets)["buckets"], low, high) for data, buckets in files]
        if not stored:
            return np.zeros((0, HASH_BYTES), dtype=np.uint8)
        held = np.concatenate(stored)
        hashes, numbers = as_bytes(held["hash"]), held["row"].astype(np.int64)
        order, new = grouped(hashes, numbers)
        last = order[np.append(new[1:], True)[: len(order)]]  # of equal ones, the one with the largest number
        return np.repeat(hashes[last], numbers[last] + 1, axis=0)


def as_bytes(hashes: np.ndarray) -> np.ndarray:
    """Return stored hashes as uint8 [n, HASH_BYTES]."""
    return np.ascontiguousarray(hashes).view(np.uint8).reshape(-1, HASH_BYTES)


def grouped(hashes: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return an order in which equal hashes are neighbours, by number, and where each group begins.

    Args:
        hashes: uint8 [n, HASH_BYTES].
        numbers: int64 [n].
    """
    head = np.ascontiguousarray(hashes[:, :8]).view("<u8").ravel()
    tail = np.ascontiguousarray(hashes[:, 8:]).view("<u2").ravel()
    order = np.lexsort((numbers, tail, head))
    head, tail = head[order], tail[order]
    new = np.ones(len(order), dtype=bool)
    new[1:] = (head[1:] != head[:-1]) | (tail[1:] != tail[:-1])
    return order, new


def repeated(hashes: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows whose hash an earlier row has, ascending, and how many earlier rows have it.

    Args:
        hashes: uint8 [n, HASH_BYTES].
        rows: int64 [n], distinct.
    """
    order, new = grouped(hashes, rows)
    rows = rows[order]
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
