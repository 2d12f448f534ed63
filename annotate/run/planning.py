"""The plan: which rows of the source each shard stands for. Made on workers, kept as a few numbers for each range.

What enters: a `Source`. What leaves: its content hash, which tells one source from another; and a `SourcePlan`, from
which any worker knows the rows of any shard. Next: `annotate.run.tokenizing`.

The content hash is the SHA-256 over the files' hashes, each of a file's bytes; a file above `PIECE_BYTES` is hashed in
pieces side by side, and its hash is that of the pieces' hashes. A hub dataset is hashed by its rows.
"""

import dataclasses
import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from annotate.records.ranges import HubData, Piece, SourceRange
from annotate.records.sources import Source
from annotate.run.checking import blocks
from annotate.run.engines.base import Engine, outcomes
from annotate.run.repeats import FindRepeats
from annotate.run.scanning import HashPieces, ListRanges, Scanned, ScanRanges
from common.errors import UserError
from common.manifest import ShardInfo
from common.storage import Location, locate

PIECE_BYTES = 64 << 20
PIECE_ROWS = 1 << 20  # of a hub dataset
HASHES_AT_ONCE = 4 << 20  # held by a worker that looks for repeats
# A shard has about four bytes of columns for each byte of its records: text, token ids, supervision and scores.
SHARD_BYTES = 64 << 20
COLUMN_BYTES = 4
LEAST_ROWS, LEAST_SHARDS = 1000, 64


def content_hash(source: Source, engine: Engine) -> str:
    """Return the hexadecimal SHA-256 that identifies what the source holds."""
    if source.hub is not None:
        total = len(source.hub.load())
        pieces = [(source.hub, a, min(total, a + PIECE_ROWS)) for a in range(0, total, PIECE_ROWS)]
        hashes = dict(outcomes(engine, HashPieces(), pieces))
        ordered = [hashes[piece] for piece in pieces]
        whole = ordered[0] if len(ordered) == 1 else hashlib.sha256(b"".join(ordered)).digest()
        return hashlib.sha256(whole + _weights(source)).hexdigest() if _weights(source) else whole.hex()
    hashes = dict(outcomes(engine, HashPieces(), (piece for file in source.files for piece in _pieces(*file))))
    digest = hashlib.sha256()
    for file in source.files:
        ordered = [hashes[piece] for piece in _pieces(*file)]
        digest.update(ordered[0] if len(ordered) == 1 else hashlib.sha256(b"".join(ordered)).digest())
    digest.update(_weights(source))
    return digest.hexdigest()


def _weights(source: Source) -> bytes:
    """Return what the shares of a source add to its hash: nothing where everything is taken."""
    return repr(source.shares).encode() if set(source.shares) - {1.0} else b""


def _pieces(place: Location, size: int) -> list[tuple[Location, int, int]]:
    return [(place, start, min(size, start + PIECE_BYTES)) for start in range(0, size, PIECE_BYTES)]


@dataclass(frozen=True)
class SourcePlan:
    """The ranges of a source and how its rows are cut into shards."""

    ranges: tuple[SourceRange, ...]
    rows: int  # records, up to the limit
    bytes: int  # of the records, about
    repeat_parts: int
    rows_per_shard: int

    @property
    def num_shards(self) -> int:
        """Shards of the source."""
        return -(-self.rows // self.rows_per_shard)

    def rows_of(self, shard: int) -> int:
        """Return the number of records of a shard."""
        return min(self.rows, (shard + 1) * self.rows_per_shard) - shard * self.rows_per_shard

    def pieces(self, shard: int) -> list[Piece]:
        """Return the rows of a shard, range by range."""
        row = shard * self.rows_per_shard
        stop = row + self.rows_of(shard)
        at = bisect_right(self.ranges, row, key=lambda part: part.first_row) - 1
        found = []
        while row < stop:
            part = self.ranges[at]
            end = min(stop, part.first_row + part.rows)
            if end > row:
                found.append(Piece(part, row - part.first_row, end - part.first_row))
                row = end
            at += 1
        return found

    def save(self, place: Location) -> None:
        """Write the plan."""
        place.write_json({**dataclasses.asdict(self), "ranges": [_as_json(part) for part in self.ranges]})

    @classmethod
    def load(cls, place: Location) -> "SourcePlan":
        """Read a plan. Raises FileNotFoundError."""
        raw = place.read_json()
        return cls(**{**raw, "ranges": tuple(_from_json(part) for part in raw["ranges"])})


def _as_json(part: SourceRange) -> dict[str, Any]:
    values = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
    if isinstance(part.place, HubData):
        values["place"] = {"arguments": part.place.arguments, "revision": part.place.revision}
    else:
        values["place"] = str(part.place)
    return {**values, "copy": str(part.copy) if part.copy is not None else None}


def _from_json(values: dict[str, Any]) -> SourceRange:
    place, copy = values["place"], values["copy"]
    if isinstance(place, dict):
        found: Location | HubData = HubData(tuple((k, v) for k, v in place["arguments"]), place["revision"])
    else:
        found = locate(place)
    return SourceRange(**{**values, "place": found, "copy": locate(copy) if copy is not None else None})


def plan_source(
    source: Source,
    engine: Engine,
    work: Location,
    limit: int | None,
    rows_per_shard: int | None,
    held: Sequence[ShardInfo] = (),
) -> SourcePlan:
    """Scan the source on the engine's workers, and cut its rows into shards.

    Args:
        work: where marks and hashes are written.
        limit: only the first so many records.
        rows_per_shard: None: about `SHARD_BYTES` of columns a shard, see `default_rows`.
        held: the shards that come before, where the source is appended; `HashHeld` has read them.

    Raises:
        UserError: the source cannot be read, or holds no records.
    """
    scanned: dict[int, Scanned] = {}
    parts: list[SourceRange] = []
    complete = 0  # leading ranges that are scanned, and their records
    rows = 0
    for part, result in outcomes(engine, ScanRanges(work, limit), _noted(_ranges(source, engine), parts)):
        scanned[part.number] = result
        while complete in scanned:
            rows += scanned[complete].rows
            complete += 1
        if limit is not None and rows >= limit:
            break  # what lies behind is not wanted
    ranges, first_row, lines, size = [], 0, 0, 0
    for part in parts[:complete]:
        result = scanned[part.number]
        lines = 0 if part.starts_file else lines
        taken = result.rows if limit is None else min(result.rows, limit - first_row)
        copy = work / f"copy-{part.number:05d}.arrow" if result.copied else None
        ranges.append(replace(part, rows=taken, lines_before=lines, first_row=first_row, copy=copy))
        first_row += taken
        lines += result.lines
        size += result.bytes * taken // max(1, result.rows)
    if first_row == 0:
        raise UserError(f"{source.location}: expected records, found none.")
    repeat_parts = min(256, -(-(first_row + sum(shard.rows for shard in held)) // HASHES_AT_ONCE))
    finder = FindRepeats(work, tuple(part.rows for part in ranges), repeat_parts, sum(1 for _ in blocks(len(held))))
    for _ in outcomes(engine, finder, range(repeat_parts)):
        pass
    rows_per_shard = rows_per_shard or default_rows(first_row, size)
    return SourcePlan(tuple(ranges), first_row, size, repeat_parts, rows_per_shard)


def default_rows(rows: int, size: int) -> int:
    """Return the records of a shard: about `SHARD_BYTES` of columns, and no fewer than `LEAST_SHARDS` shards.

    A small source is cut into shards of `LEAST_ROWS` (or of `SHARD_BYTES`, where those are fewer rows). The number
    follows from the source alone, so that engines, machines and interruptions do not change it.
    """
    full = max(1, SHARD_BYTES // COLUMN_BYTES * rows // max(1, size))
    return min(full, max(LEAST_ROWS, -(-rows // LEAST_SHARDS)))


def _ranges(source: Source, engine: Engine) -> Iterator[SourceRange]:
    """Yield the ranges of all files, numbered through."""
    number = 0
    if source.hub is not None:
        listed: Iterable[list[SourceRange]] = [source.ranges_of(i) for i in range(max(1, len(source.shares)))]
    else:
        listed = _in_order(outcomes(engine, ListRanges(source), range(len(source.files))))
    for parts in listed:
        for part in parts:
            yield replace(part, number=number)
            number += 1


def _in_order(results: Iterable[tuple[int, Any]]) -> Iterator[Any]:
    """Yield the results of items 0, 1, 2 … in that order."""
    held: dict[int, Any] = {}
    wanted = 0
    for number, result in results:
        held[number] = result
        while wanted in held:
            yield held.pop(wanted)
            wanted += 1


def _noted(items: Iterator[SourceRange], seen: list[SourceRange]) -> Iterator[SourceRange]:
    for item in items:
        seen.append(item)
        yield item
