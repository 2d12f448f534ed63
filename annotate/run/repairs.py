"""`annotate verify --repair`: makes again what can be made again, and says what cannot.

What enters: a shard directory. What leaves: the same directory, whose files are what the manifest says as far as they
can be made, and what was mended and what was not, with the reason. In this order, each step resting on those before:

1. the manifest, from its copy, or both from each other where each has a few wrong bytes;
2. foreign files that readers would take for the directory's own, which are deleted;
3. the tokenizer, from where the manifest says that it came from;
4. what groupers fitted, from the shards' tokens;
5. shards, rejects and all that is left, from the source: a run with the manifest's own settings.

A file is only ever replaced by one that has the SHA-256 of the manifest; what a run makes is compared at the end.
"""

import dataclasses
import itertools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console

from annotate.groupers import grouper_class
from annotate.groupers.base import Grouper, GrouperOptions
from annotate.records.selection import parse_selection
from annotate.records.sources import STANDARD_INPUT
from annotate.run.appending import part_of
from annotate.run.fitting import add
from annotate.run.pipeline import run
from annotate.run.settings import Settings
from annotate.run.tables import COUNTED, from_table
from annotate.run.verification import Damage, Examination, examine
from annotate.run.workspace import has_rejects
from annotate.run.writers import Writer
from annotate.tokens.target import TargetTokenizer
from common.errors import UserError
from common.files import sha256_file
from common.manifest import (
    COPY_NAME,
    MANIFEST_NAME,
    STATE_NAME,
    TOKENIZER_NAME,
    Manifest,
    SourceInfo,
    SourcePart,
    parse,
    read_manifest,
)
from common.shards import read_table
from common.storage import Location, Place, locate

MAX_WRONG_BYTES = 12  # in both manifests together: 2^12 ways to choose


@dataclass
class Repairs:
    """What `repair` did. Sentences."""

    mended: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def repair(directory: Place) -> Repairs:
    """Mend a shard directory as far as possible.

    Raises:
        UserError: neither the manifest nor its copy can be read, nor made of the two.
    """
    place, done = locate(directory), Repairs()
    if not any((place / name).is_file() for name in (MANIFEST_NAME, COPY_NAME)):
        read_manifest(place)  # says what is there instead
    with Writer(place):
        _mend_manifests(place, done)
        found = examine(place)
        for item in found.of("stray"):
            (place / item.file).delete()
            done.mended.append(f"{place / item.file}: a foreign file among the directory's own, deleted.")
        _mend_tokenizer(found, done)
        _mend_state(found, done)
    _mend_from_source(place, done)
    return done


def _mend_manifests(place: Location, done: Repairs) -> None:
    """Let the manifest and its copy be the same whole file."""
    contents = {name: _read(place / name) for name in (MANIFEST_NAME, COPY_NAME)}
    whole = next((data for name, data in contents.items() if data and _is_whole(data, place / name)), None)
    if whole is None and all(contents.values()):
        whole = _agree(contents[MANIFEST_NAME] or b"", contents[COPY_NAME] or b"", place)
    if whole is None:
        raise UserError(
            f"{place}: {MANIFEST_NAME} and {COPY_NAME} are both lost or damaged beyond what each tells of the other. "
            "Template, source and settings stand nowhere else, so they cannot be made again: annotate into another "
            "directory. The shards, where they are whole, can be read as Parquet files."
        )
    if parse(whole, place / MANIFEST_NAME).schema_version == 1:
        return  # had no copy
    for name, data in contents.items():
        if data != whole:
            (place / name).write_bytes(whole)
            source = "its copy" if name == MANIFEST_NAME and contents[COPY_NAME] == whole else "the two together"
            source = "the manifest" if contents[MANIFEST_NAME] == whole else source
            done.mended.append(f"{place / name}: written again from {source}.")


def _read(path: Location) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _is_whole(data: bytes, path: Location) -> bool:
    try:
        parse(data, path)
    except UserError:
        return False
    return True


def _agree(first: bytes, second: bytes, place: Location) -> bytes | None:
    """Return the one way to choose between two damaged copies, byte by byte, that its checksum confirms."""
    if len(first) != len(second):
        return None
    differ = [i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b]
    if not 0 < len(differ) <= MAX_WRONG_BYTES:
        return None
    for choice in itertools.product((first, second), repeat=len(differ)):
        data = bytearray(first)
        for position, source in zip(differ, choice, strict=True):
            data[position] = source[position]
        if _is_whole(bytes(data), place / MANIFEST_NAME):
            return bytes(data)
    return None


def _mend_tokenizer(found: Examination, done: Repairs) -> None:
    damaged, origin = found.of("tokenizer"), found.manifest.tokenizer
    if not damaged:
        return
    where = f"{origin.name}{f' (revision {origin.revision})' if origin.revision else ''}"
    with _scratch() as folder:
        try:
            target = TargetTokenizer(origin.name, origin.revision)
        except UserError as error:
            done.left += [
                f"{item.problem} It comes from {where}, which cannot be loaded now: {error}" for item in damaged
            ]
            return
        target.tokenizer.save_pretrained(folder / TOKENIZER_NAME)
        _take(found, damaged, folder, f"the tokenizer {where}", done)


def _mend_state(found: Examination, done: Repairs) -> None:
    damaged = found.of("state")
    if not damaged or found.of("shard"):
        return  # fits need every shard: a run makes both
    wanted = {Path(item.file).stem for item in damaged}
    groupers = [
        grouper_class(info.name).from_parameters(info.parameters, GrouperOptions())
        for info in found.manifest.groupers
        if info.name in wanted and grouper_class(info.name).needs_fit
    ]
    with _scratch() as folder:
        for grouper in _fitted(found, groupers):
            grouper.save(folder / STATE_NAME)
        _take(found, damaged, folder, "the shards' tokens", done)


def _fitted(found: Examination, groupers: list[Grouper]) -> list[Grouper]:
    """Fit groupers to the tokens of the shards that each was fitted on, one shard at a time."""
    totals: list[dict[str, np.ndarray]] = [{} for _ in groupers]
    fitted = {info.name: info.fitted_shards for info in found.manifest.groupers}
    extents = [fitted[grouper.name] or len(found.manifest.shards) for grouper in groupers]
    for index, shard in enumerate(found.manifest.shards[: max(extents)]):
        batch = from_table(read_table(found.place / shard.file, COUNTED))
        for grouper, total, extent in zip(groupers, totals, extents, strict=True):
            for name, values in grouper.count(batch).items() if index < extent else ():
                add(total, name, values.size, slice(values.size), values)
    for grouper, total in zip(groupers, totals, strict=True):
        grouper.fit(total)
    return groupers


def _mend_from_source(place: Location, done: Repairs) -> None:
    """Run the annotation again over what is still damaged, with the settings of the manifest, source by source."""
    found = examine(place)
    if not found.of("shard", "rejects", "state"):
        return
    before, error = found.manifest, None
    for part in _damaged_parts(found):
        try:
            run(_settings(found, part), Console(quiet=True))
            error = None
        except UserError as raised:  # another source may be needed as well; the last one ends it
            error = raised
    after = read_manifest(place).manifest
    if (after.shards, after.files) == (before.shards, before.files):
        before.save(place)  # a source that is found under another name is the same source
    still = {item.file: item for item in examine(place).damage}
    for item in found.of("shard", "rejects", "state"):
        if item.file not in still and _entries(after).get(item.file) == _entries(before)[item.file]:
            shards = [index for index, shard in enumerate(before.shards) if shard.file == item.file]
            sources = [part_of(before, index).source for index in shards] or [part.source for part in before.parts]
            where = ", ".join(source.location for source in sources)
            done.mended.append(f"{place / item.file}: made again from the source, {where}.")
        elif error is not None:
            done.left.append(f"{item.problem} From the source it cannot be made: {error}")
        else:
            done.left.append(f"{item.problem} The source gives another file now; library versions may differ.")


def _damaged_parts(found: Examination) -> list[SourcePart]:
    """Return the sources that are to be read again: those of damaged shards, and of lost rejects."""
    manifest = found.manifest
    damaged, no_rejects = {item.file for item in found.of("shard")}, bool(found.of("rejects"))
    firsts = {
        part_of(manifest, index).first_shard
        for index, shard in enumerate(manifest.shards)
        if shard.file in damaged or (no_rejects and has_rejects(shard))
    }
    return [part for part in manifest.parts if part.first_shard in firsts] or manifest.parts[:1]


def _entries(manifest: Manifest) -> dict[str, str]:
    shards = {entry.file: entry.sha256 for entry in manifest.shards}
    return shards | {entry.file: entry.sha256 for entry in manifest.files}


def _settings(found: Examination, part: SourcePart) -> Settings:
    """Return the settings of the run that made a source's shards, with the directory's tokenizer if that is whole."""
    manifest = found.manifest
    source, name = part.source, manifest.groupers[0].name
    whole = not found.of("tokenizer")
    flags = dataclasses.fields(grouper_class(name).Flags)
    options = {item.name: manifest.groupers[0].parameters.get(item.name) for item in flags}
    return Settings(
        data=_data(source),
        groupers=(name,),
        out=str(found.place),
        tokenizer=str(found.place / TOKENIZER_NAME) if whole else manifest.tokenizer.name,
        tokenizer_revision=None if whole else manifest.tokenizer.revision,
        data_revision=source.revision,
        template=manifest.template,
        format_name=source.format,
        columns=source.columns,
        overlong=source.overlong,
        max_length=manifest.max_length,
        limit=source.limit,
        rows_per_shard=part.rows_per_shard,
        engine="local",
        options=GrouperOptions(**options),
    )


def _data(source: SourceInfo) -> tuple[str, ...]:
    """Return the `--data` that names a manifest's source: its place where that is one file or directory, else as typed.

    Raises:
        UserError: it was read from standard input.
    """
    typed = tuple(source.name.split(", "))
    if any(parse_selection(text).name == STANDARD_INPUT for text in typed):
        raise UserError("it was read from standard input. Give it again to the same `annotate run` command.")
    if len(typed) == 1 and parse_selection(typed[0]).shares == [1.0] and Path(source.location).exists():
        return (source.location,)  # whatever directory this is called from
    return typed


def _take(found: Examination, damaged: list[Damage], folder: Path, source: str, done: Repairs) -> None:
    """Put the files of a scratch folder in the place of damaged ones, those that are what the manifest says."""
    wanted = {file.file: file.sha256 for file in found.manifest.files}
    for item in damaged:
        made = folder / item.file
        if made.is_file() and sha256_file(made) == wanted[item.file]:
            locate(made).copy_to(found.place / item.file)
            done.mended.append(f"{found.place / item.file}: made again from {source}.")
        else:
            what = "gives another file now" if made.is_file() else "gives no such file"
            done.left.append(f"{item.problem} It was made from {source}, which {what}; library versions may differ.")


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sft-go-") as folder:
        yield Path(folder)
