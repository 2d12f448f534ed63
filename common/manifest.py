"""The index of a shard directory, `manifest.json`: written last, so its presence means that the directory is complete.

What enters: what the annotation did. What leaves: one JSON file that `train`, `services` and `annotate verify` read.
"""

import dataclasses
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from common.errors import UserError
from common.files import read_json, sha256_file, write_json

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
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
    schema_version: int = SCHEMA_VERSION
    product_version: str = field(default_factory=product_version)

    @property
    def columns(self) -> dict[str, Kind]:
        """Score columns in the order of the shards' schema, each with its kind."""
        return {name: kind for grouper in self.groupers for name, kind in grouper.columns.items()}

    def save(self, directory: Path) -> None:
        """Write `manifest.json` into `directory`, atomically."""
        write_json(directory / MANIFEST_NAME, dataclasses.asdict(self))


def load_manifest(directory: Path) -> Manifest:
    """Read the manifest of a shard directory.

    Raises:
        UserError: the directory or its manifest is missing, unfinished, unreadable, or of another schema version.
    """
    path = directory / MANIFEST_NAME
    if not directory.is_dir():
        raise UserError(f"{directory}: expected a shard directory made by `annotate run`, found no such directory.")
    if not path.is_file():
        if (directory / WORK_NAME).is_dir():
            raise UserError(
                f"{directory}: the annotation did not finish (no {MANIFEST_NAME}). "
                "Run the same `annotate run` command again; it goes on where it stopped."
            )
        raise UserError(f"{directory}: expected a shard directory made by `annotate run`, found no {MANIFEST_NAME}.")
    raw = read_json(path)
    found = raw.get("schema_version") if isinstance(raw, dict) else None
    if found != SCHEMA_VERSION:
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
            product_version=raw["product_version"],
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: the manifest is incomplete ({error}). Annotate again.") from error


def manifest_hash(directory: Path) -> str:
    """Return the SHA-256 of the manifest file: it names the exact shards that a training run used."""
    return sha256_file(directory / MANIFEST_NAME)
