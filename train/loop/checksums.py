"""What a checkpoint's files were when they were written: their sizes and sha256, in a file beside them.

What enters: a checkpoint's directory. What leaves: `checksums.json` in it, and, before a run goes on from it, the name
of the file that is no longer what was written. Next: `resume.py` takes the newest checkpoint that is whole.

A disk that filled up, a copy that broke off or a node that lost its page cache leaves files that exist and load
half-way, or load as other numbers. Hashing reads each file once, in several threads: about a second for a gigabyte and
core.
"""

import functools
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common.files import sha256_file, write_json

CHECKSUMS_NAME = "checksums.json"


def write_checksums(checkpoint: Path, without: Iterable[str] = ()) -> None:
    """Write down the size and sha256 of every file in `checkpoint`, but those named in `without`."""
    left_out = {CHECKSUMS_NAME, *without}
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name not in left_out)
    names = [path.relative_to(checkpoint).as_posix() for path in files]
    write_json(checkpoint / CHECKSUMS_NAME, dict(zip(names, _measure(files), strict=True)))


def add_checksum(checkpoint: Path, name: str) -> None:
    """Add one file, written after the others."""
    path = checkpoint / CHECKSUMS_NAME
    known = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, {**known, name: _measure([checkpoint / name])[0]})


def find_damage(checkpoint: Path) -> str | None:
    """Return which file of a checkpoint is not what was written, as a clause; None where all are.

    A checkpoint without `checksums.json` (of an earlier version) is not looked into.
    """
    path = checkpoint / CHECKSUMS_NAME
    if not path.exists():
        return None
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        wanted = {checkpoint / name: (entry["bytes"], entry["sha256"]) for name, entry in known.items()}
    except (OSError, ValueError, TypeError, KeyError):
        return f"{CHECKSUMS_NAME} cannot be read"
    for file, (size, _) in wanted.items():  # sizes first: they cost nothing
        if not file.is_file():
            return f"{file.relative_to(checkpoint)} is missing"
        if file.stat().st_size != size:
            return f"{file.relative_to(checkpoint)} has {file.stat().st_size:,} bytes, {size:,} were written"
    for file, found in zip(wanted, _measure(wanted), strict=True):
        if found["sha256"] != wanted[file][1]:
            return f"{file.relative_to(checkpoint)} was altered (its sha256 is another)"
    return None


def _measure(files: Iterable[Path]) -> list[dict[str, int | str]]:
    files = list(files)
    stats = [file.stat() for file in files]
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        hashes = list(pool.map(_sha256, map(str, files), (s.st_size for s in stats), (s.st_mtime_ns for s in stats)))
    return [{"bytes": stat.st_size, "sha256": digest} for stat, digest in zip(stats, hashes, strict=True)]


@functools.lru_cache(maxsize=4096)
def _sha256(path: str, size: int, changed_ns: int) -> str:
    """Hash a file; one that has not changed since is not read again."""
    return sha256_file(Path(path))
