"""Locations on a disk of this machine. `common.storage` says what every method means.

What enters: a path. What leaves: a `LocalLocation`. Files are flushed to disk and renamed into place, so that a process
that is killed at any moment leaves whole files, and at most a temporary name (`common.files.is_temporary`).
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from common.files import atomic_path, fill_file
from common.storage import Location, Reach, StorageError


class LocalLocation(Location):
    """A path of this machine's file system."""

    reach: Reach = "machine"

    def __init__(self, path: Path):
        self.local: Path = path
        self.text = str(path)

    @property
    def name(self) -> str:
        return self.local.name

    @property
    def parent(self) -> "LocalLocation":
        return LocalLocation(self.local.parent)

    def __truediv__(self, name: str) -> "LocalLocation":
        return LocalLocation(self.local / name)

    def __fspath__(self) -> str:
        return self.text

    def is_file(self) -> bool:
        return self.local.is_file()

    def is_dir(self) -> bool:
        return self.local.is_dir()

    def size(self) -> int:
        return self.local.stat().st_size

    def names(self) -> list[str]:
        try:
            return sorted(os.listdir(self.local))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def files(self) -> dict[str, int]:
        found = {}
        for folder, _, names in os.walk(self.local):
            for name in names:
                path = Path(folder, name)
                found[path.relative_to(self.local).as_posix()] = path.stat().st_size
        return dict(sorted(found.items()))

    def stamps(self) -> dict[str, str]:
        found = {name: (self.local / name).stat() for name in self.files()}
        return {name: f"{status.st_size} {status.st_mtime_ns}" for name, status in found.items()}

    def open(self) -> BinaryIO:
        return open(self.local, "rb")

    def write_bytes(self, data: bytes) -> None:
        with self.writing() as path:
            path.write_bytes(data)

    @contextmanager
    def writing(self) -> Iterator[Path]:
        with _explained(self):
            self.local.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.local) as temporary:
            yield temporary

    def create(self, data: bytes) -> bool:
        with _explained(self):
            self.local.parent.mkdir(parents=True, exist_ok=True)
            with fill_file(self.local) as temporary:
                temporary.write_bytes(data)
                try:
                    os.link(temporary, self.local)  # fails when the name is taken; the content is whole before
                except FileExistsError:
                    return False
            return True

    def make_dir(self) -> None:
        with _explained(self):
            self.local.mkdir(parents=True, exist_ok=True)

    def delete(self) -> None:
        self.local.unlink(missing_ok=True)

    def delete_tree(self) -> None:
        shutil.rmtree(self.local, ignore_errors=True)


@contextmanager
def _explained(place: Location) -> Iterator[None]:
    """Turn a refusal of the file system into a sentence for the user."""
    try:
        yield
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise StorageError(f"{place}: cannot be written ({error.strerror}). Give another directory.") from error
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise StorageError(f"{place}: cannot be written ({error.strerror}).") from error
