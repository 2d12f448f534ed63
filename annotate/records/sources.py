"""Sources: where records come from, found by name, file, directory or hub id.

What enters: the value of `--data`. What leaves: a `Source`, whose `records()` streams the records in a fixed order, as
often as asked, and whose `info` identifies the content for the manifest. Next: `annotate.records.conversations`.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from annotate.records.readers import READERS, Position, RawRecord
from common.errors import UserError

DATA_HOME = "SFT_GO_DATA_HOME"
# The paper's two datasets. GAIR/lima ships JSON Lines beside a loading script, which `datasets` no longer runs.
HUB_NAMES = {
    "alpaca": ("yahma/alpaca-cleaned", {"path": "yahma/alpaca-cleaned"}),
    "lima": ("GAIR/lima", {"path": "json", "data_files": "hf://datasets/GAIR/lima/train.jsonl"}),
}
SAMPLE_PATH = Path(__file__).parents[1] / "sample" / "records.jsonl"
SAMPLE_TOKENIZER = Path(__file__).parents[1] / "sample" / "tokenizer"


@dataclass
class Source:
    """Records in a fixed order.

    Attributes:
        name: what the user asked for.
        location: the file, directory or hub id.
        revision: the hub revision, else None.
        files: the files that are read, in order (empty for the hub).
        dataset: a loaded `datasets.Dataset` (hub only).
        position: how far the current stream is.
    """

    name: str
    location: str
    revision: str | None = None
    files: list[Path] = field(default_factory=list)
    dataset: Any = None
    note: str | None = None  # what the run should tell the user about the choice
    position: Position = field(default_factory=Position)

    def records(self, limit: int | None = None) -> Iterator[RawRecord]:
        """Yield the records, the first `limit` ones only when it is given."""
        self.position.fraction = 0.0
        for row, (value, unreadable) in enumerate(self._values()):
            if limit is not None:
                if row >= limit:
                    break
                self.position.fraction = max(self.position.fraction, (row + 1) / limit)
            yield RawRecord(row, value, unreadable)
        self.position.fraction = 1.0

    def _values(self) -> Iterator[tuple[Any, str | None]]:
        if self.dataset is not None:
            for index, value in enumerate(self.dataset):
                self.position.fraction = (index + 1) / len(self.dataset)
                yield value, None
            return
        within = Position()
        for number, path in enumerate(self.files):
            within.fraction = 0.0
            for item in READERS[path.suffix.lower()](path, within):
                self.position.fraction = (number + within.fraction) / len(self.files)
                yield item

    def content_hash(self) -> str:
        """Return a SHA-256 over what `records()` reads: the files' bytes, or the hub dataset's rows."""
        digest = hashlib.sha256()
        if self.dataset is not None:
            for value in self.dataset:
                digest.update(canonical_json(value) + b"\n")
        for path in self.files:
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()


_ENCODER = json.JSONEncoder(sort_keys=True, ensure_ascii=False, default=str, separators=(",", ":"))


def canonical_json(value: Any) -> bytes:
    """Return bytes that are equal for equal records; lone surrogates are kept."""
    return _ENCODER.encode(value).encode("utf-8", "surrogatepass")


def record_hash(value: Any) -> str:
    """Return 20 hexadecimal digits that identify a record's content."""
    return hashlib.sha256(canonical_json(value)).hexdigest()[:20]


def document_id(content: str, occurrence: int) -> str:
    """Return a document's id: its record's hash, and how many equal records came before it."""
    return f"{content}-{occurrence}"


def find_source(data: str, revision: str | None = None) -> Source:
    """Find the source that `--data` names.

    In this order: `sample`; `alpaca` and `lima` (a file in $SFT_GO_DATA_HOME first, else the hub); a file or a
    directory of Parquet files; a hub id.

    Raises:
        UserError: nothing of this name is there, or the hub cannot give it.
    """
    if data == "sample":
        return Source("sample", "sample", files=[SAMPLE_PATH])
    if data in HUB_NAMES:
        local = _in_data_home(data)
        if local is not None:
            note = f"--data {data}: using {local} (from ${DATA_HOME}), not the hub."
            return Source(data, str(local), files=[local], note=note)
        hub_id, arguments = HUB_NAMES[data]
        return _hub_source(data, hub_id, arguments, revision)
    path = Path(data)
    if path.is_dir():
        return _directory_source(data, path)
    if path.is_file():
        if path.suffix.lower() not in READERS:
            raise UserError(f"{path}: expected a file in {', '.join(READERS)}, found {path.suffix or 'no ending'}.")
        if path.stat().st_size == 0:
            raise UserError(f"{path}: expected records, found an empty file.")
        return Source(data, str(path.resolve()), files=[path])
    if data.count("/") == 1 and not path.suffix and not data.startswith((".", "/", "~")):
        return _hub_source(data, data, {"path": data}, revision)
    raise UserError(
        f"--data {data}: no such file or directory. Expected sample, alpaca, lima, a file in {', '.join(READERS)}, "
        "a directory of Parquet files, or a hub id such as owner/name."
    )


def _in_data_home(name: str) -> Path | None:
    home = os.environ.get(DATA_HOME)
    if not home:
        return None
    if not Path(home).is_dir():
        raise UserError(f"${DATA_HOME}={home}: expected a directory, found none. Correct the variable or unset it.")
    candidates = [Path(home) / f"{name}{suffix}" for suffix in (".json", ".jsonl", ".parquet")]
    return next((path for path in candidates if path.is_file()), None)


def _directory_source(data: str, path: Path) -> Source:
    files = sorted(path.glob("*.parquet"))
    if not files:
        raise UserError(f"{path}: expected a directory of Parquet files, found none that ends in .parquet.")
    return Source(data, str(path.resolve()), files=files)


def _hub_source(name: str, hub_id: str, arguments: dict[str, Any], revision: str | None) -> Source:
    """Load the train split of a hub dataset through `datasets` (cached on disk, memory-mapped)."""
    import datasets

    try:
        dataset = datasets.load_dataset(**arguments, split="train", revision=revision)
    except Exception as error:  # whatever the hub or the network says, the user can do the same few things
        raise UserError(
            f"--data {name}: the dataset {hub_id} (split train) could not be loaded from the Hugging Face hub: "
            f"{type(error).__name__}: {(str(error) or '-').splitlines()[0]}. "
            "If an account is needed, accept the dataset's terms on its page and run `hf auth login`. "
            f"Without the hub, pass a local file (--data path/to/file.json); or, for alpaca and lima, put <name>.json, "
            f".jsonl or .parquet into a directory and set {DATA_HOME} to it."
        ) from error
    return Source(name, hub_id, revision or _resolved_revision(dataset), dataset=dataset)


def _resolved_revision(dataset: Any) -> str | None:
    """Return the commit that `datasets` resolved, where its download records name it."""
    for url in dataset.info.download_checksums or {}:
        _, _, rest = url.partition("@")
        if rest:
            return rest.split("/")[0]
    return None
