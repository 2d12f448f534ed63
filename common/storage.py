"""Where files lie: one small API over local paths and every URL that fsspec knows (s3://, gs://, hf://, memory://).

What enters: a path or URL. What leaves: a `Location`, picklable to workers, hashable, ordered by its text.

    place = locate("s3://bucket/shards")           a path, file:// or any other URL; nothing is touched yet
    place / "state" / "tfidf.parquet"              a place below; .name, .parent, str(place)
    place.is_file()  .is_dir()  .exists()  .size()
    place.read_bytes()  .read_text()  .read_json()     missing: FileNotFoundError
    place.open()                                   binary, seekable, for pyarrow among others
    place.write_bytes(b)  .write_text(s)  .write_json(v)    whole or not at all
    with place.writing() as path: …                a local temporary Path; published whole when the block ends
    place.create(b) -> bool                        only if nothing is there: False when it is (who comes first)
    place.names()  place.files()                   what is directly below; every file below with its bytes
    place.stamps()                                 every file below with a text that changes when the file does
    place.delete()  .delete_tree()  .make_dir()    deleting what is not there is no error
    place.copy_to(other)  place.sha256()           streamed: (hexadecimal digest, bytes)
    place.local -> Path | None                     the path on this machine, None for a URL
    place.reach                                    who sees the same files: "machine", "process" (memory://), "network"

Whole or not at all: on disks a temporary name beside the file (`is_temporary(name)` tells it), flushed and renamed; on
object stores one put. Writing makes the directories above. Options come from the environment, as the libraries read
it: AWS_ENDPOINT_URL and AWS_ACCESS_KEY_ID for s3://, FSSPEC_S3_… and so on.

Errors: `StorageError`, a `UserError`, where the store refuses or cannot be reached (no bucket, no credentials, no
package: which pip command brings it); FileNotFoundError where a file to be read is missing.
"""

import hashlib
import json
import re
import shutil
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO, Literal, Union

from common.errors import UserError
from common.files import is_temporary

__all__ = ["Location", "Place", "StorageError", "is_temporary", "is_url", "locate"]

Reach = Literal["process", "machine", "network"]
READ_BYTES = 1 << 20
URL = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)


class StorageError(UserError):
    """A store that refuses or cannot be reached. Trying again later may help."""


def is_url(text: str) -> bool:
    """Tell whether a text is a URL and no path."""
    return URL.match(text) is not None


class Location(ABC):
    """A file or directory, there or not. Made by `locate`."""

    text: str
    reach: Reach
    local: Path | None

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"locate({self.text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Location) and self.text == other.text

    def __lt__(self, other: "Location") -> bool:
        return self.text < other.text

    def __hash__(self) -> int:
        return hash(self.text)

    @property
    def name(self) -> str:
        """The last part."""
        return self.text.rstrip("/").rpartition("/")[2]

    @property
    @abstractmethod
    def parent(self) -> "Location":
        """The directory above."""

    @abstractmethod
    def __truediv__(self, name: str) -> "Location":
        """Return the place `name` below this one; it may have several parts."""

    # What is there

    def exists(self) -> bool:
        """Tell whether a file or a directory is here. On object stores a directory exists when a file is below."""
        return self.is_file() or self.is_dir()

    @abstractmethod
    def is_file(self) -> bool:
        """Tell whether a file is here."""

    @abstractmethod
    def is_dir(self) -> bool:
        """Tell whether a directory is here."""

    @abstractmethod
    def size(self) -> int:
        """Return the file's bytes. Raises FileNotFoundError."""

    @abstractmethod
    def names(self) -> list[str]:
        """Return the names directly below, sorted, files and directories; an empty list where nothing is."""

    @abstractmethod
    def files(self) -> dict[str, int]:
        """Return every file below, however deep: its path relative to here ("state/tfidf.parquet") and its bytes."""

    @abstractmethod
    def stamps(self) -> dict[str, str]:
        """Return every file below, as `files` does, with a text that changes with its content (ETag, size and time)."""

    # Reading

    @abstractmethod
    def open(self) -> BinaryIO:
        """Open the file for reading."""

    def read_bytes(self) -> bytes:
        """Return the file's content."""
        with self.open() as file:
            return file.read()

    def read_text(self) -> str:
        """Return the file's content, which is UTF-8."""
        return self.read_bytes().decode("utf-8")

    def read_json(self) -> Any:
        """Return what a JSON file holds. Raises `UserError` when it is not JSON."""
        data = self.read_bytes()
        try:
            return json.loads(data)
        except ValueError as error:
            raise UserError(f"{self}: expected JSON, found something else ({error}).") from error

    def sha256(self) -> tuple[str, int]:
        """Return the SHA-256 of the file, in hexadecimal, and its bytes; read in pieces."""
        digest, size = hashlib.sha256(), 0
        with self.open() as file:
            while piece := file.read(READ_BYTES):
                digest.update(piece)
                size += len(piece)
        return digest.hexdigest(), size

    # Writing

    @abstractmethod
    def write_bytes(self, data: bytes) -> None:
        """Write a whole file, over what is there."""

    def write_text(self, text: str) -> None:
        """Write a whole file in UTF-8."""
        self.write_bytes(text.encode("utf-8"))

    def write_json(self, value: Any) -> None:
        """Write `value` as indented JSON."""
        self.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    @abstractmethod
    def writing(self) -> AbstractContextManager[Path]:
        """Yield a path on this machine to write to; when the block ends without an error the file is here, whole."""

    @abstractmethod
    def create(self, data: bytes) -> bool:
        """Write a file if nothing is here, and tell whether it was written.

        Of several at once, one gets True: on disks, and on stores with conditional puts (s3://, gs://). Others of
        fsspec's file systems look first and write then.
        """

    @abstractmethod
    def make_dir(self) -> None:
        """Make the directory and those above; nothing to do on an object store."""

    @abstractmethod
    def delete(self) -> None:
        """Delete the file, if it is there."""

    @abstractmethod
    def delete_tree(self) -> None:
        """Delete the directory with everything below, if it is there."""

    def copy_to(self, other: "Location") -> None:
        """Copy this file to `other`, whole, over what is there."""
        with self.open() as source, other.writing() as path, open(path, "wb") as target:
            shutil.copyfileobj(source, target, READ_BYTES)


Place = Union[str, Path, Location]  # noqa: UP007 (what every function that takes a location accepts)


def locate(place: Place) -> Location:
    """Return the location that a path or URL names.

    Raises:
        StorageError: a URL of a kind that no installed package reads.
    """
    if isinstance(place, Location):
        return place
    from common.disks import LocalLocation
    from common.stores import StoreLocation

    found = URL.match(str(place))
    if found is None:
        return LocalLocation(Path(place))
    if found[1].lower() == "file":
        return LocalLocation(Path(str(place)[len("file://") :]))
    return StoreLocation(str(place))
