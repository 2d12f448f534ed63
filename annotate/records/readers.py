"""File formats, read as streams: a file's records leave one by one, so memory does not grow with the file.

What enters: a file, and the byte at which to begin (a place where a record begins, as an earlier pass has found it).
What leaves: `Row`s in source order; a line or row that cannot be read leaves with the reason in its place, and the rest
goes on. Next: `annotate.records.ranges` cuts files into what a worker reads by itself.
"""

import codecs
import csv
import io
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from common.errors import UserError
from common.storage import Location

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


class Row(NamedTuple):
    """One record as it was read, and where it begins, so that a later pass can begin there."""

    value: Any  # a dict, unless the source holds something else there
    unreadable: str | None = None  # why the row could not be read; then value is None
    byte: int = 0  # in the file
    line: int = 0  # lines of the file before it, from where the pass began


Reader = Callable[[Location, int, int | None, int], Iterator[Row]]  # file, first byte, stop, lines before


def read_jsonl(file: Location, start: int = 0, stop: int | None = None, lines: int = 0) -> Iterator[Row]:
    """Yield a row for each line that is not blank and begins in [start, stop). A line begins at `start`."""
    at, number = start, lines
    with file.open() as source:
        source.seek(start)
        for line in source:
            if stop is not None and at >= stop:
                return
            begin, before = at, number
            at += len(line)
            number += 1
            if line.isspace():
                continue
            try:
                text = line.decode("utf-8-sig" if begin == 0 else "utf-8")
                line = b""
                value = json.loads(text)
                del text
                yield Row(value, None, begin, before)
                del value
            except ValueError as error:  # UnicodeDecodeError is one too
                yield Row(None, f"line {number} is not JSON: {error}", begin, before)
            except RecursionError:
                yield Row(None, f"line {number} is nested too deeply", begin, before)


def first_line_from(file: Location, byte: int) -> int:
    """Return where the first line begins that begins at `byte` or later."""
    if byte == 0:
        return 0
    with file.open() as source:
        source.seek(byte - 1)
        return byte - 1 + len(source.readline())


def count_lines(file: Location, start: int, stop: int) -> int:
    """Return the number of line ends in [start, stop)."""
    found, left = 0, stop - start
    with file.open() as source:
        source.seek(start)
        while left > 0 and (piece := source.read(min(READ_BYTES, left))):
            found += piece.count(b"\n")
            left -= len(piece)
    return found


def is_array(file: Location) -> bool:
    """Tell whether a .json file is an array; one that starts with an object is read as JSON Lines."""
    with file.open() as source:
        head = source.read(4096).lstrip(b"\xef\xbb\xbf").lstrip()
    if head.startswith(b"{"):
        return False
    if not head.startswith(b"["):
        raise UserError(f"{file}: expected a JSON array of records or JSON Lines, found {head[:20]!r}.")
    return True


def read_array(file: Location, start: int = 0, stop: int | None = None, lines: int = 0) -> Iterator[Row]:
    """Yield the elements of a JSON array, decoded from a sliding window of text; `start` is 0 or where one begins."""
    decoder = json.JSONDecoder()
    with file.open() as source:
        total = max(1, source.seek(0, io.SEEK_END))
        source.seek(start)
        decode = codecs.getincrementaldecoder("utf-8" if start else "utf-8-sig")().decode
        text, at, at_end, need_comma = "", 0, False, False
        begin = 0  # characters of `text` up to here are counted in `byte`
        byte = start + (3 if start == 0 and _has_mark(file) else 0)

        def broken(what: str) -> UserError:
            where = f"about {min(1.0, source.tell() / total):.0%} in"
            return UserError(f"{file}: expected a JSON array of records, but {what}, {where}.")

        def count() -> None:
            nonlocal begin, byte
            passed = text[begin:at]
            byte += len(passed) if passed.isascii() else len(passed.encode("utf-8"))
            begin = at

        def more() -> None:
            nonlocal text, at, at_end, begin
            count()
            data = source.read(max(READ_BYTES, len(text) - at))
            try:
                read = decode(data, final=not data)
            except UnicodeDecodeError as error:
                raise broken(f"it is not UTF-8 ({error.reason})") from error
            at_end = not data
            text, at, begin = text[at:] + read, 0, 0

        more()
        while start == 0 and "[" not in text and not at_end:
            more()
        if start == 0:
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
            count()
            row = Row(value, None, byte, 0)
            at, need_comma = end, True
            yield row


def _has_mark(file: Location) -> bool:
    """Tell whether a file begins with a byte order mark."""
    with file.open() as source:
        return source.read(3) == codecs.BOM_UTF8


def read_csv(file: Location, start: int = 0, stop: int | None = None, lines: int = 0) -> Iterator[Row]:
    """Yield the rows of a CSV file with a header line (.tsv: between tabs); `start` is 0 or where a row begins."""
    delimiter = "\t" if file.name.lower().endswith(".tsv") else ","
    csv.field_size_limit(sys.maxsize)
    byte = start

    def counted(text: io.TextIOWrapper) -> Iterator[str]:
        nonlocal byte
        for line in text:
            byte += len(line) if line.isascii() else len(line.encode("utf-8"))
            yield line

    with file.open() as source:
        header = None
        if start == 0:
            byte = 3 if _has_mark(file) else 0
        else:
            with file.open() as head, io.TextIOWrapper(head, encoding="utf-8-sig", newline="") as text:
                header = next(csv.reader(text, strict=True, delimiter=delimiter))
        source.seek(start)
        with io.TextIOWrapper(source, encoding="utf-8" if start else "utf-8-sig", newline="") as text:
            rows = csv.DictReader(counted(text), header, strict=True, delimiter=delimiter)
            try:
                _ = rows.fieldnames
            except UnicodeDecodeError as error:
                raise UserError(f"{file}: expected UTF-8, found {error}.") from error
            while True:
                begin, before = byte, lines + rows.reader.line_num
                try:
                    row = next(rows, None)
                except UnicodeDecodeError as error:
                    raise UserError(f"{file}: expected UTF-8, found {error}.") from error
                except csv.Error as error:
                    number = lines + rows.reader.line_num  # its own line_num is that of the last row that was read
                    yield Row(None, f"line {number} is not CSV: {error}", begin, before)
                    continue
                if row is None:
                    return
                if None in row:
                    unreadable = f"line {lines + rows.line_num} has more cells than the header"
                    yield Row(None, unreadable, begin, before)
                else:
                    yield Row(row, None, begin, before)


ENDINGS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
READERS: dict[str, Reader] = {"lines": read_jsonl, "array": read_array, "csv": read_csv}
