"""Locations by URL, through fsspec: object stores first of all. `common.storage` says what every method means.

What enters: a URL. What leaves: a `StoreLocation`, which holds the URL alone, so that it can be pickled to workers; the
connection is made in each process at the first use, with what the environment says.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from common.storage import Location, Reach, StorageError

# What brings the package of a kind of URL. hf:// comes with transformers.
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
# A file appears here when its put has ended, so a put is enough. Elsewhere a temporary name is moved.
SINGLE_PUT = {"s3", "s3a", "gs", "gcs", "abfs", "az", "oci", "oss", "r2", "tos", "hf", "memory"}


class StoreLocation(Location):
    """A URL. Nothing of a listing is kept: other processes write here too."""

    local = None

    def __init__(self, url: str):
        self.text = url.rstrip("/")
        self.protocol = url.partition("://")[0].lower()
        self.reach: Reach = "process" if self.protocol == "memory" else "network"

    def _connect(self) -> tuple[Any, str]:
        """Return the file system and this location's name in it."""
        import fsspec

        try:
            return fsspec.core.url_to_fs(self.text, use_listings_cache=False, skip_instance_cache=False)
        except (ImportError, ValueError) as error:
            extra = EXTRAS.get(self.protocol)
            what = f"pip install 'sft-go[{extra}]'" if extra else "install the package that fsspec names here"
            raise StorageError(f"{self}: {self.protocol}:// cannot be read ({error}): {what}.") from error

    @property
    def parent(self) -> "StoreLocation":
        head, _, name = self.text.rpartition("/")
        return self if head.endswith("/") or not name else StoreLocation(head)

    def __truediv__(self, name: str) -> "StoreLocation":
        return StoreLocation(f"{self.text}/{name.strip('/')}")

    def _info(self) -> dict[str, Any] | None:
        store, name = self._connect()
        with self._explained("read"):
            try:
                return store.info(name)
            except FileNotFoundError:
                return None

    def exists(self) -> bool:
        return self._info() is not None

    def is_file(self) -> bool:
        info = self._info()
        return info is not None and info["type"] == "file"

    def is_dir(self) -> bool:
        info = self._info()
        return info is not None and info["type"] == "directory"

    def size(self) -> int:
        info = self._info()
        if info is None:
            raise FileNotFoundError(f"{self}: no such file")
        return int(info["size"])

    def names(self) -> list[str]:
        store, name = self._connect()
        with self._explained("listed"):
            try:
                found = store.ls(name, detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return []
        base = store._strip_protocol(name).rstrip("/")
        below = {item["name"].rstrip("/") for item in found} - {base}
        return sorted(path.rpartition("/")[2] for path in below)

    def files(self) -> dict[str, int]:
        return {path: int(info["size"]) for path, info in self._find().items()}

    def stamps(self) -> dict[str, str]:
        keys = ("size", "ETag", "etag", "md5Hash", "blob_id", "LastModified", "mtime", "created")
        return {
            path: " ".join(str(info[key]) for key in keys if info.get(key) is not None)
            for path, info in self._find().items()
        }

    def _find(self) -> dict[str, dict[str, Any]]:
        """Return what the store says of every file below, by name relative to here."""
        store, name = self._connect()
        with self._explained("listed"):
            try:
                found = store.find(name, detail=True)
            except FileNotFoundError:
                return {}
        base = store._strip_protocol(name).rstrip("/") + "/"
        return {path.removeprefix(base): found[path] for path in sorted(found) if path.startswith(base)}

    def open(self) -> BinaryIO:
        store, name = self._connect()
        with self._explained("read"):
            return cast("BinaryIO", store.open(name, "rb"))

    def read_bytes(self) -> bytes:
        store, name = self._connect()
        with self._explained("read"):
            return store.cat_file(name)

    def sha256(self) -> tuple[str, int]:
        with self._explained("read"):
            return super().sha256()

    def write_bytes(self, data: bytes) -> None:
        store, name = self._connect()
        with self._explained("written"):
            if self.protocol in SINGLE_PUT:
                store.pipe_file(name, data)
                return
        with self.writing() as path:
            path.write_bytes(data)

    @contextmanager
    def writing(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="sft-go-") as folder:
            path = Path(folder, self.name)
            yield path
            store, name = self._connect()
            with self._explained("written"):
                if self.protocol in SINGLE_PUT:
                    store.put_file(str(path), name)
                    return
                temporary = f"{store._parent(name)}/.{self.name}.{Path(folder).name[-8:]}.tmp"
                store.makedirs(store._parent(name), exist_ok=True)
                try:
                    store.put_file(str(path), temporary)
                    store.mv(temporary, name)
                finally:
                    if store.exists(temporary):
                        store.rm_file(temporary)

    def create(self, data: bytes) -> bool:
        store, name = self._connect()
        with self._explained("written"):
            try:
                store.pipe_file(name, data, mode="create")
            except FileExistsError:
                return False
            except OSError as error:
                if "PreconditionFailed" in str(error) or "pre-conditions" in str(error).lower():
                    return False
                raise
        return True

    def make_dir(self) -> None:
        if self.protocol not in SINGLE_PUT:
            store, name = self._connect()
            with self._explained("written"):
                store.makedirs(name, exist_ok=True)

    def delete(self) -> None:
        store, name = self._connect()
        with self._explained("deleted"):
            try:
                store.rm_file(name)
            except FileNotFoundError:
                return

    def delete_tree(self) -> None:
        store, name = self._connect()
        with self._explained("deleted"):
            try:
                store.rm(name, recursive=True)
            except FileNotFoundError:
                return

    @contextmanager
    def _explained(self, done: str) -> Iterator[None]:
        """Turn what a store says into a sentence for the user; a missing file that is read stays FileNotFoundError."""
        try:
            yield
        except StorageError:
            raise
        except FileNotFoundError as error:
            if done == "read":
                raise
            what = "there is no such bucket or directory; make it first, or correct the URL"
            raise StorageError(f"{self}: cannot be {done}: {what} ({_first_line(error)}).") from error
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            raise
        except Exception as error:  # every store's client has its own classes
            raise StorageError(f"{self}: cannot be {done} ({_first_line(error)}). {_advice(error)}") from error


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[0]}"


def _advice(error: BaseException) -> str:
    """Say what the user can do, from the kind of error."""
    kind, text = type(error).__name__, str(error)
    if "Credential" in kind or "credential" in text.lower() or "AccessKey" in text:
        return (
            "Give credentials as the store's own tools take them, such as AWS_ACCESS_KEY_ID or AWS_PROFILE for s3://."
        )
    if isinstance(error, PermissionError):
        return "The credentials in use may not do this: give others, or the bucket a policy that allows it."
    return "Is the address right (AWS_ENDPOINT_URL for a server of one's own), and does the store answer?"
