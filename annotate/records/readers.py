"""File formats, read as streams: a file's records leave one by one, so memory does not grow with the file.

What enters: a path. What leaves: `RawRecord`s in source order; a line or row that cannot be read leaves as a `Reject`
in its place, and the rest goes on. Next: `annotate.records.conversations` turns records into conversations.
"""

import csv
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError

READ_BYTES = 1 << 20
# A JSON value inside an array may be this long before the file counts as broken rather than as not read far enough.
MAX_RECORD_CHARACTERS = 1 << 28


@dataclass(frozen=True)
class Reject:
    """A record that cannot become a document."""

    source_row: int
    reason: str  # a code such as "empty_response"
    message: str  # a sentence

    def as_json(self) -> str:
        """Return the line of `rejects.jsonl`."""
        return json.dumps(asdict(self), ensure_ascii=False)


@dataclass(frozen=True)
class RawRecord:
    """One row of the source, as it was read."""

    source_row: int
    value: Any  # a dict, unless the source holds something else there
    unreadable: str | None = None  # why the row could not be read; then value is None


@dataclass
class Position:
    """How far a stream has been read, for the progress display."""

    fraction: float = 0.0  # in [0, 1]


Reader = Callable[[Path, Position], Iterator[tuple[Any, str | None]]]


def read_jsonl(path: Path, position: Position) -> Iterator[tuple[Any, str | None]]:
    """Yield (value, why unreadable) for each line that is not blank."""
    total, done = max(1, path.stat().st_size), 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            done += len(line)
            position.fraction = done / total
            if not line.strip():
                continue
            try:
                yield json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8")), None
            except ValueError as error:  # UnicodeDecodeError is one too
                yield None, f"line {number} is not JSON: {error}"
            except RecursionError:
                yield None, f"line {number} is nested too deeply"


def read_json(path: Path, position: Position) -> Iterator[tuple[Any, str | None]]:
    """Yield the elements of a JSON array; a file that starts with an object is read as JSON Lines."""
    with open(path, "rb") as file:
        head = file.read(4096).lstrip(b"\xef\xbb\xbf").lstrip()
    if head.startswith(b"{"):
        yield from read_jsonl(path, position)
        return
    if not head.startswith(b"["):
        raise UserError(f"{path}: expected a JSON array of records or JSON Lines, found {head[:20]!r}.")
    yield from _array_elements(path, position)


def _array_elements(path: Path, position: Position) -> Iterator[tuple[Any, str | None]]:
    """Decode the array's elements from a sliding window of text."""
    decoder, total = json.JSONDecoder(), max(1, path.stat().st_size)

    def broken(what: str) -> UserError:
        return UserError(f"{path}: expected a JSON array of records, but {what}, about {position.fraction:.0%} in.")

    with open(path, encoding="utf-8-sig", errors="strict", newline="") as file:
        text, at, at_end, need_comma = "", 0, False, False

        def more() -> None:
            nonlocal text, at, at_end
            try:
                read = file.read(max(READ_BYTES, len(text) - at))
            except UnicodeDecodeError as error:
                raise broken(f"it is not UTF-8 ({error.reason})") from error
            at_end = not read
            text, at = text[at:] + read, 0
            position.fraction = min(1.0, file.buffer.tell() / total)

        more()
        at = text.index("[") + 1
        while True:
            while True:  # white space, then at most one comma between elements
                while at < len(text) and text[at] in " \t\r\n":
                    at += 1
                if at < len(text) and need_comma and text[at] == ",":
                    at, need_comma = at + 1, False
                    continue
                if at < len(text) or at_end:
                    break
                more()
            if at >= len(text):
                raise broken("it ends without ]: the file is truncated")
            if text[at] == "]":
                return
            if need_comma:
                raise broken("a comma is missing between two records")
            try:
                value, end = decoder.raw_decode(text, at)
                if end == len(text) and not at_end:  # a number could go on in the next piece
                    more()
                    continue
            except json.JSONDecodeError as error:
                if at_end or len(text) - at > MAX_RECORD_CHARACTERS:
                    raise broken(f"a record cannot be read ({error.msg})") from error
                more()
                continue
            except RecursionError as error:
                raise broken("a record is nested too deeply") from error
            at, need_comma = end, True
            yield value, None


def read_csv(path: Path, position: Position) -> Iterator[tuple[Any, str | None]]:
    """Yield the rows of a CSV file with a header line."""
    csv.field_size_limit(sys.maxsize)
    total = max(1, path.stat().st_size)
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, strict=True)
        while True:
            try:
                row = next(rows, None)
            except UnicodeDecodeError as error:
                raise UserError(f"{path}: expected UTF-8, found {error}.") from error
            except csv.Error as error:
                yield None, f"line {rows.line_num} is not CSV: {error}"
                continue
            if row is None:
                return
            position.fraction = min(1.0, file.buffer.tell() / total)
            if None in row:
                yield None, f"line {rows.line_num} has more cells than the header"
            else:
                yield row, None


def read_parquet(path: Path, position: Position) -> Iterator[tuple[Any, str | None]]:
    """Yield the rows of a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: expected a Parquet file, found something else ({error}).") from error
    done, total = 0, max(1, file.metadata.num_rows)
    for batch in file.iter_batches(batch_size=1024):
        for value in batch.to_pylist():
            done += 1
            position.fraction = done / total
            yield value, None


READERS: dict[str, Reader] = {
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".csv": read_csv,
    ".parquet": read_parquet,
}
