"""Files of this machine that are either whole or absent, and their checksums. `common.storage` has URLs as well."""

import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.errors import UserError

TEMPORARY = re.compile(r"\..*\.tmp")  # dead writers may leave such names


def is_temporary(name: str) -> bool:
    """Tell whether a file's name is one that `atomic_path` gives while it writes."""
    return TEMPORARY.fullmatch(name) is not None


@contextmanager
def fill_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which no other process uses, and remove it at the end."""
    # By chance and not by process number: nodes of a cluster that share a disk have equal ones.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed to disk and renamed to `path`, else removed.

    A device, such as /dev/stdout, is written as it is: it must not become a file.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        yield path
        return
    with fill_file(path) as temporary:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: the file is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: expected JSON, found something else ({error}).") from error


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
