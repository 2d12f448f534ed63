"""Sources: where records come from, found by name, file, directory or hub id.

What enters: the value of `--data`. What leaves: a `Source`, which names the files with their sizes and reads none of
them. Next: `annotate.records.ranges` cuts it into what workers read.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from glob import glob
from pathlib import Path
from typing import Any

from annotate.records.ranges import HubData, SourceRange, begin_of, file_ranges, hub_ranges, read_range
from annotate.records.readers import ENDINGS
from annotate.records.selection import parse_hub, parse_selection
from annotate.records.unpacking import STANDARD_INPUT, is_packed, unpack
from common.errors import UserError
from common.hints import did_you_mean
from common.storage import Location, is_url, locate

DATA_HOME = "SFT_GO_DATA_HOME"
# The paper's two datasets. GAIR/lima ships JSON Lines beside a loading script, which `datasets` no longer runs.
HUB_NAMES = {
    "alpaca": ("yahma/alpaca-cleaned", {"path": "yahma/alpaca-cleaned"}),
    "lima": ("GAIR/lima", {"path": "json", "data_files": "hf://datasets/GAIR/lima/train.jsonl"}),
}
SAMPLE_PATH = Path(__file__).parents[1] / "sample" / "records.jsonl"
SAMPLE_TOKENIZER = Path(__file__).parents[1] / "sample" / "tokenizer"


@dataclass(frozen=True)
class Source:
    """Records in a fixed order.

    Attributes:
        name: what the user asked for.
        location: the file, directory, URL or hub id.
        revision: the hub revision, else None.
        files: the files that are read, in order, with their bytes (none for the hub).
        hub: the hub's dataset.
    """

    name: str
    location: str
    revision: str | None = None
    files: tuple[tuple[Location, int], ...] = ()
    hub: HubData | None = None
    note: str | None = None  # what the run should tell the user about the choice
    shares: tuple[float, ...] = ()  # of each file's records, or of each pass over the hub's dataset; empty: all of them

    def ranges_of(self, number: int) -> list[SourceRange]:
        """Return the ranges of one file, or of one pass over the hub's dataset, numbered from 0."""
        if self.hub is not None:
            ranges = hub_ranges(self.hub)
        else:
            place, size = self.files[number]
            ranges = file_ranges(place, size, 0)
        return [replace(part, share=self.shares[number]) for part in ranges] if self.shares else ranges

    def first_values(self, count: int) -> list[Any]:
        """Return the first records' values, as many as there are up to `count`; for the format to be detected."""
        values: list[Any] = []
        parts = (part for i in range(len(self.files) or 1) for part in self.ranges_of(i))
        for part in parts:
            mark = begin_of(part)
            for row in read_range(part, mark) if mark else ():
                values.append(row.value)
                if len(values) == count:
                    return values
        return values


LONG_TEXT = 1 << 20  # characters
_ENCODER = json.JSONEncoder(sort_keys=True, ensure_ascii=False, default=str, separators=(",", ":"))


def canonical_json(value: Any) -> bytes:
    """Return bytes that are equal for equal records; lone surrogates are kept."""
    return _ENCODER.encode(value).encode("utf-8", "surrogatepass")


def record_digest(value: Any) -> bytes:
    """Return 10 bytes that identify a record's content."""
    if isinstance(value, dict) and any(isinstance(part, str) and len(part) > LONG_TEXT for part in value.values()):
        digest = hashlib.sha256()
        for piece in _json_pieces(value):
            digest.update(piece.encode("utf-8", "surrogatepass"))
        return digest.digest()[:10]
    return hashlib.sha256(canonical_json(value)).digest()[:10]


def _json_pieces(record: dict[str, Any]) -> Iterator[str]:
    """Yield the canonical JSON of a record, long texts in slices: a copy of one takes four bytes a character."""
    for number, name in enumerate(sorted(record)):
        yield ("," if number else "{") + _ENCODER.encode(name) + ":"
        part = record[name]
        if isinstance(part, str):
            yield '"'
            yield from (_ENCODER.encode(part[at : at + LONG_TEXT])[1:-1] for at in range(0, len(part), LONG_TEXT))
            yield '"'
        else:
            yield _ENCODER.encode(part)
    yield "}"


def record_hash(value: Any) -> str:
    """Return the same as 20 hexadecimal digits."""
    return record_digest(value).hex()


def document_id(content: str, occurrence: int) -> str:
    """Return a document's id: its record's hash, and how many equal records came before it."""
    return f"{content}-{occurrence}"


def find_sources(data: Sequence[str], revision: str | None, unpack_into: Location) -> Source:
    """Find what one or several `--data` name together, in order, with weights (`annotate.records.selection`).

    Args:
        unpack_into: where standard input and compressed files are written as plain ones.

    Raises:
        UserError: nothing of a name is there, or the hub's dataset is not the only one.
    """
    found: list[tuple[Source, list[float]]] = []
    for text in data:
        selection = parse_selection(text)
        for name in _expand(selection.name):
            packed: Location | str | None = None
            if name == STANDARD_INPUT:
                packed = name
            elif is_packed(name) and not is_url(name) and not Path(name).is_file():
                raise UserError(f"--data {name}: no such file.{_beside(name)}")
            elif is_packed(name):
                packed = locate(name if is_url(name) else Path(name))
            if packed is None:
                source = find_source(name, revision)
            else:
                place = unpack(packed, unpack_into, len(found))
                location = name if name == STANDARD_INPUT or is_url(name) else str(Path(name).resolve())
                source = _file_source(name, place, location)
            found.append((source, selection.shares))
    if len(found) == 1 and found[0][1] == [1.0]:
        return replace(found[0][0], name=data[0])
    hubs = [source.name for source, _ in found if source.hub is not None]
    if hubs and len(found) > 1:
        raise UserError(
            f"--data: a dataset of the hub stands alone, found {hubs[0]} beside others. Annotate it into a directory "
            "of its own, and give `train run` both directories."
        )
    files: list[tuple[Location, int]] = []
    shares: list[float] = []
    for source, passes in found:
        for share in passes:
            files += source.files
            shares += [share] * (len(source.files) or 1)
    notes = " ".join(source.note for source, _ in found if source.note)
    return Source(
        name=", ".join(data),
        location=", ".join(source.location for source, _ in found),
        revision=found[0][0].revision,
        files=tuple(files),
        hub=found[0][0].hub,
        note=notes or None,
        shares=tuple(shares),
    )


def _expand(name: str) -> list[str]:
    """Return the files that a pattern matches, in order; any other name as it is."""
    if is_url(name) or Path(name).exists() or not re.search(r"[*?]", name):
        return [name]
    names = sorted(path for path in glob(name, recursive=True) if Path(path).is_file())
    if not names:
        raise UserError(f"--data {name}: no file matches the pattern.")
    return names


def _beside(name: str) -> str:
    """Suggest a file of the same directory."""
    parent = Path(name).expanduser().parent
    return did_you_mean(Path(name).name, [path.name for path in parent.iterdir()]) if parent.is_dir() else ""


def find_source(data: str, revision: str | None = None) -> Source:
    """Find the source that one name of `--data` stands for.

    In this order: `sample`; `alpaca` and `lima` (a file in $SFT_GO_DATA_HOME first, else the hub); a URL, a file or a
    directory of Parquet files; a hub id.

    Raises:
        UserError: nothing of this name is there, or the hub cannot give it.
    """
    if data == "sample":
        return _file_source("sample", locate(SAMPLE_PATH), "sample")
    if data in HUB_NAMES:
        local = _in_data_home(data)
        if local is not None:
            note = f"--data {data}: using {local} (from ${DATA_HOME}), not the hub."
            return _file_source(data, locate(local), str(local), note)
        hub_id, arguments = HUB_NAMES[data]
        return _hub_source(data, hub_id, arguments, revision)
    place = locate(data if is_url(data) else Path(data))
    if place.is_file():
        return _file_source(data, place, str(place) if is_url(data) else str(Path(data).resolve()))
    if place.is_dir():
        return _directory_source(data, place)
    on_hub = parse_hub(data)
    if on_hub is not None and not Path(on_hub["path"]).suffix and not Path(data).parent.is_dir():
        return _hub_source(data, on_hub["path"], on_hub, revision)
    raise UserError(
        f"--data {data}: no such file or directory.{_beside(data)} Expected sample, alpaca, lima, a file in "
        f"{', '.join(ENDINGS)}, "
        "plain, .gz or .zst, a directory or a pattern of such files (a path or a URL such as s3://bucket/data), - for "
        "standard input, or a hub id such as owner/name, owner/name:config or owner/name[validation]."
    )


def _file_source(name: str, place: Location, location: str, note: str | None = None) -> Source:
    ending = Path(place.name).suffix.lower()
    if ending not in ENDINGS:
        raise UserError(f"{place}: expected a file in {', '.join(ENDINGS)}, found {ending or 'no ending'}.")
    size = place.size()
    if size == 0:
        raise UserError(f"{place}: expected records, found an empty file.")
    # Absolute: workers may have another working directory.
    place = place if place.local is None else locate(place.local.absolute())
    return Source(name, location, files=((place, size),), note=note)


def _in_data_home(name: str) -> Path | None:
    home = os.environ.get(DATA_HOME)
    if not home:
        return None
    if not Path(home).is_dir():
        raise UserError(f"${DATA_HOME}={home}: expected a directory, found none. Correct the variable or unset it.")
    candidates = [Path(home) / f"{name}{suffix}" for suffix in (".json", ".jsonl", ".parquet")]
    return next((path for path in candidates if path.is_file()), None)


def _directory_source(data: str, place: Location) -> Source:
    base = place if place.local is None else locate(place.local.resolve())
    files = [(base / name, size) for name, size in base.files().items() if "/" not in name]
    wanted = tuple((file, size) for file, size in files if file.name.lower().endswith(ENDINGS) and size)
    parquet = tuple((file, size) for file, size in wanted if file.name.endswith(".parquet"))
    wanted = parquet or wanted  # beside Parquet files, others describe them
    if not wanted:
        raise UserError(f"{place}: expected a directory of files in {', '.join(ENDINGS)}, found none.")
    return Source(data, str(base), files=wanted)


def _hub_source(name: str, hub_id: str, arguments: dict[str, Any], revision: str | None) -> Source:
    """Load a split of a hub dataset through `datasets` (cached on disk, memory-mapped)."""
    hub = HubData(tuple(arguments.items()), revision)
    try:
        dataset = hub.load()
    except Exception as error:  # whatever the hub or the network says, the user can do the same few things
        raise UserError(
            f"--data {name}: the dataset {hub_id} (split {arguments.get('split', 'train')}) could not be loaded from "
            "the Hugging Face hub: "
            f"{type(error).__name__}: {(str(error) or '-').splitlines()[0]}. "
            "If an account is needed, accept the dataset's terms on its page and run `hf auth login`. "
            f"Without the hub, pass a local file (--data path/to/file.json); or, for alpaca and lima, put <name>.json, "
            f".jsonl or .parquet into a directory and set {DATA_HOME} to it."
        ) from error
    # Workers load the commit that was found here, whatever the branch says by then.
    found = revision or _resolved_revision(dataset)
    return Source(name, hub_id, found, hub=HubData(hub.arguments, found if "data_files" not in arguments else revision))


def _resolved_revision(dataset: Any) -> str | None:
    """Return the commit that `datasets` resolved, where its download records name it."""
    for url in dataset.info.download_checksums or {}:
        _, _, rest = url.partition("@")
        if rest:
            return rest.split("/")[0]
    return None
