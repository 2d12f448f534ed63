"""The index of a shard directory, `manifest.json`: written last, so its presence means that the directory is complete.

What enters: what the annotation did. What leaves: one JSON file that `train`, `services` and `annotate verify` read,
which names every other file of the directory with its bytes and SHA-256, and carries a checksum of itself; and a second
copy, `manifest.copy.json`, which is read in its place when it is damaged or lost.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, NamedTuple

from common.errors import UserError
from common.storage import Location, Place, locate

SCHEMA_VERSION = 2
READABLE_VERSIONS = (1, 2)  # 1 has no `files` and no checksum of its own
MANIFEST_NAME = "manifest.json"
COPY_NAME = "manifest.copy.json"
REJECTS_NAME = "rejects.jsonl"
STATE_NAME = "state"
TOKENIZER_NAME = "tokenizer"  # a copy of the target tokenizer's files, so that the directory can travel
WORK_NAME = ".work"  # what an unfinished run needs to go on; gone when the manifest is there

Kind = Literal["importance", "reference_loss"]


def product_version() -> str:
    """Return the installed version of sft-go, or "unknown" in a bare checkout."""
    try:
        return version("sft-go")
    except PackageNotFoundError:
        return "unknown"


@dataclass(frozen=True)
class SourceInfo:
    """Where the records came from."""

    name: str  # what the user asked for, such as "alpaca"
    location: str  # the file, directory or hub id that was read
    revision: str | None  # the hub revision; None for files
    content_hash: str  # SHA-256 over the content that was read
    format: str  # record format, such as "alpaca" or "messages"
    limit: int | None  # first records only
    columns: dict[str, str] = field(default_factory=dict)  # columns under other names: field -> column
    overlong: str = "truncate"  # what was done with documents above the maximum length: "truncate" or "split"


@dataclass(frozen=True)
class SourcePart:
    """The shards of one source, which end where the next part begins."""

    source: SourceInfo
    first_shard: int
    rows_per_shard: int


@dataclass(frozen=True)
class TokenizerInfo:
    """The target tokenizer."""

    name: str
    revision: str | None
    fingerprint: str


@dataclass(frozen=True)
class GrouperInfo:
    """One grouper that scored the shards."""

    name: str
    parameters: dict[str, Any]  # equal parameters mean equal scores; model revisions included
    columns: dict[str, Kind]  # the columns it wrote, with their kinds
    report: dict[str, Any] = field(default_factory=dict)  # what its summary says, such as the number of chunks
    fitted_shards: int | None = None  # its state counts so many first shards; None: all of them, or it fits nothing


@dataclass(frozen=True)
class ShardInfo:
    """One Parquet file."""

    file: str
    rows: int
    tokens: int
    supervised_tokens: int
    bytes: int
    sha256: str
    source_rows: int = 0  # records of the source that this shard stands for, rejects included
    truncated: int = 0  # documents cut at max_length
    counters: dict[str, dict[str, float]] = field(default_factory=dict)  # by grouper: what its report is made of


@dataclass(frozen=True)
class FileInfo:
    """One file of the directory that is no shard: of the state, the tokenizer, or the rejects."""

    file: str  # relative to the directory, such as "state/tfidf.parquet"
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Counts:
    """Totals over the directory."""

    documents: int
    tokens: int
    supervised_tokens: int
    truncated: int  # documents cut at max_length
    rejects: dict[str, int]  # by reason code


@dataclass(frozen=True)
class Manifest:
    """What a complete shard directory holds."""

    source: SourceInfo
    template: str
    tokenizer: TokenizerInfo
    max_length: int
    rows_per_shard: int
    groupers: list[GrouperInfo]
    counts: Counts
    shards: list[ShardInfo]
    files: list[FileInfo] = field(default_factory=list)  # see `describe_files`; empty in schema version 1
    appended: list[SourcePart] = field(default_factory=list)  # sources after the first, `annotate run --append`
    schema_version: int = SCHEMA_VERSION
    product_version: str = field(default_factory=product_version)

    @property
    def columns(self) -> dict[str, Kind]:
        """Score columns in the order of the shards' schema, each with its kind."""
        return {name: kind for grouper in self.groupers for name, kind in grouper.columns.items()}

    @property
    def parts(self) -> list[SourcePart]:
        """Every source with its shards, in order."""
        return [SourcePart(self.source, 0, self.rows_per_shard), *self.appended]

    def save(self, directory: Place) -> None:
        """Write `manifest.json` into `directory` in one step, which is the moment that counts; then its copy.

        What an older manifest named has to stay until this returns: until then the copy may be the older one.
        """
        data = render(self)
        (locate(directory) / MANIFEST_NAME).write_bytes(data)
        (locate(directory) / COPY_NAME).write_bytes(data)


class ReadManifest(NamedTuple):
    """A manifest as it was found."""

    manifest: Manifest
    digest: str  # SHA-256 of the file: it names the exact shards
    note: str | None  # what the user should be told: the copy stands in for the manifest


def describe_files(directory: Place) -> list[FileInfo]:
    """Return bytes and SHA-256 of every file that a manifest names beside the shards, read now, sorted by name."""
    found, place = [], locate(directory)
    names = [REJECTS_NAME] if (place / REJECTS_NAME).is_file() else []
    names += [f"{folder}/{name}" for folder in (STATE_NAME, TOKENIZER_NAME) for name in (place / folder).files()]
    for name in sorted(names):
        digest, size = (place / name).sha256()
        found.append(FileInfo(name, size, digest))
    return found


def render(manifest: Manifest) -> bytes:
    """Return the bytes of a manifest's file. The last entry is the SHA-256 of what it would be without that entry.

    What only a directory with appended sources has is left out elsewhere.
    """
    value = dataclasses.asdict(manifest)
    if not manifest.appended:
        del value["appended"]
    for grouper in value["groupers"]:
        if grouper["fitted_shards"] is None:
            del grouper["fitted_shards"]
    return _sealed(value) if manifest.schema_version > 1 else _json(value)


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8")


def _sealed(value: dict[str, Any]) -> bytes:
    return _json({**value, "checksum": hashlib.sha256(_json(value)).hexdigest()})


def parse(data: bytes, path: Location) -> Manifest:
    """Return the manifest that a file's bytes hold.

    Raises:
        UserError: they are not exactly what `render` wrote, or of a schema version that is not read here.
    """
    try:
        raw = json.loads(data)
    except ValueError as error:
        raise UserError(f"{path}: the manifest is damaged: expected JSON, found something else ({error}).") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path}: the manifest is damaged: expected a JSON object, found something else.")
    found, sealed = raw.get("schema_version"), "checksum" in raw
    if (sealed or found != 1) and _sealed({key: raw[key] for key in raw if key != "checksum"}) != data:
        raise UserError(f"{path}: the manifest is damaged: its content is not what its checksum says.")
    if found not in READABLE_VERSIONS:
        raise UserError(
            f"{path}: expected schema version {SCHEMA_VERSION}, found {found}. "
            "Annotate again with this version of sft-go, or install the version that wrote the shards."
        )
    try:
        return Manifest(
            source=SourceInfo(**raw["source"]),
            template=raw["template"],
            tokenizer=TokenizerInfo(**raw["tokenizer"]),
            max_length=raw["max_length"],
            rows_per_shard=raw["rows_per_shard"],
            groupers=[GrouperInfo(**grouper) for grouper in raw["groupers"]],
            counts=Counts(**raw["counts"]),
            shards=[ShardInfo(**shard) for shard in raw["shards"]],
            files=[FileInfo(**file) for file in raw.get("files", [])],
            appended=[
                SourcePart(**{**part, "source": SourceInfo(**part["source"])}) for part in raw.get("appended", [])
            ],
            schema_version=found,
            product_version=raw["product_version"],
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: the manifest is damaged or incomplete ({error}).") from error


def read_manifest(directory: Place) -> ReadManifest:
    """Read the manifest of a shard directory, or its copy when the manifest is damaged or lost.

    Raises:
        UserError: the directory or both files are missing, unfinished, unreadable, or of another schema version.
    """
    place = locate(directory)
    data = _read(place / MANIFEST_NAME)
    problem: UserError
    if data is not None:
        try:
            return ReadManifest(parse(data, place / MANIFEST_NAME), hashlib.sha256(data).hexdigest(), None)
        except UserError as error:
            problem = error
    else:
        problem = _missing(place)
    copy = _read(place / COPY_NAME)
    try:
        if copy is None:
            raise problem
        manifest = parse(copy, place / COPY_NAME)
    except UserError:
        raise problem from None
    note = f"{problem if data is not None else f'{place / MANIFEST_NAME} is missing.'} Its copy, {COPY_NAME}, is read."
    note += f" `annotate verify --repair {place}` restores it."
    return ReadManifest(manifest, hashlib.sha256(copy).hexdigest(), note)


def load_manifest(directory: Place) -> Manifest:
    """Return the manifest of a shard directory, as `read_manifest` finds it."""
    return read_manifest(directory).manifest


def _read(path: Location) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None


def _missing(place: Location) -> UserError:
    """Say what is found where a manifest was expected."""
    expected = f"{place}: expected a shard directory made by `annotate run`, found no"
    if not place.is_dir():
        return UserError(f"{expected} such directory.")
    if (place / WORK_NAME).is_dir():
        return UserError(
            f"{place}: the annotation did not finish (no {MANIFEST_NAME}). "
            "Run the same `annotate run` command again; it goes on where it stopped."
        )
    return UserError(f"{expected} {MANIFEST_NAME}.")


def manifest_hash(directory: Place) -> str:
    """Return the SHA-256 of the manifest file: it names the exact shards that a training run used."""
    return read_manifest(directory).digest
