"""Sources that cannot be read from the middle, made into files that can: standard input, .gz and .zst.

What enters: a compressed file, or `-`. What leaves: a plain file in the work directory of the run, which every worker
sees; its bytes are those of the file that was compressed, so the shards are the same. Next: `annotate.records.ranges`.

It is one pass at the speed of the disk, in the driver; what follows is read by all workers.
"""

import gzip
import shutil
import sys
import zlib
from pathlib import Path
from typing import Any, BinaryIO

from common.errors import UserError
from common.storage import Location

PACKED = (".gz", ".zst")
STANDARD_INPUT = "-"
READ_BYTES = 1 << 20


def is_packed(name: str) -> bool:
    """Tell whether `unpack` is for this name."""
    return name == STANDARD_INPUT or name.lower().endswith(PACKED)


def unpack(source: Location | str, into: Location, number: int) -> Location:
    """Return a plain file with the content of a compressed one, or of standard input (`-`).

    Args:
        number: tells files of equal names apart.

    Raises:
        UserError: it is damaged, or empty.
    """
    if isinstance(source, str):
        return _take_standard_input(into, number)
    place = into / f"{number}-{Path(source.name).stem}"
    try:
        with source.open() as packed, _reader(source.name, packed) as content:
            _write(place, content, b"")
    except (OSError, EOFError, zlib.error) as error:  # what gzip and pyarrow say of damaged files
        if isinstance(error, OSError) and error.errno is not None:
            raise
        kind = Path(source.name).suffix
        raise UserError(f"{source}: expected a whole {kind} file, found a damaged one ({error}).") from error
    return place


def _reader(name: str, packed: BinaryIO) -> Any:
    if name.lower().endswith(".gz"):
        return gzip.open(packed)
    import pyarrow as pa

    return pa.CompressedInputStream(pa.PythonFile(packed, "r"), "zstd")


def _take_standard_input(into: Location, number: int) -> Location:
    """Write what comes on standard input; its first bytes say what it is."""
    if sys.stdin is None or sys.stdin.isatty():
        raise UserError("--data -: expected records on standard input, found a terminal. Pipe them: … | annotate run …")
    stream = sys.stdin.buffer
    head = stream.read(READ_BYTES)
    if not head.strip():
        raise UserError("--data -: expected records on standard input, found nothing.")
    start = head.lstrip(b"\xef\xbb\xbf").lstrip()[:1]
    ending = "parquet" if head.startswith(b"PAR1") else "json" if start in (b"[", b"{") else "csv"
    place = into / f"{number}-stdin.{ending}"
    _write(place, stream, head)
    return place


def _write(place: Location, content: Any, head: bytes) -> None:
    with place.writing() as path, open(path, "wb") as file:
        file.write(head)
        shutil.copyfileobj(content, file, READ_BYTES)
