"""`annotate verify`: does a shard directory hold exactly what its manifest says, down to the last byte of every file?

What enters: a shard directory, here or on a store. What leaves: an `Examination`, which names every file that is
damaged, lost or foreign; `annotate.run.repairs` mends what can be made again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pyarrow as pa

from common.errors import UserError
from common.manifest import (
    COPY_NAME,
    MANIFEST_NAME,
    REJECTS_NAME,
    STATE_NAME,
    TOKENIZER_NAME,
    WORK_NAME,
    Manifest,
    ShardInfo,
    parse,
    read_manifest,
)
from common.shards import check_shard, check_size, read_table, refuse_damage, shard_schema
from common.storage import Location, Place, is_temporary, locate

Kind = Literal["manifest", "shard", "state", "tokenizer", "rejects", "stray"]


@dataclass(frozen=True)
class Damage:
    """One file that is not as it should be."""

    file: str  # relative to the directory
    kind: Kind
    problem: str  # a sentence that begins with the file's place


@dataclass(frozen=True)
class Examination:
    """What was found."""

    place: Location
    manifest: Manifest
    damage: list[Damage]
    notes: list[str] = field(default_factory=list)  # what is no damage, but worth knowing

    def of(self, *kinds: Kind) -> list[Damage]:
        """Return the damage of these kinds."""
        return [item for item in self.damage if item.kind in kinds]


def verify_shards(directory: Place) -> Manifest:
    """Check every file of a shard directory, the shards' content and the manifest's totals.

    Raises:
        UserError: what is wrong, file by file.
    """
    found = examine(directory)
    refuse_damage(found.place, [item.problem for item in found.damage])
    return found.manifest


def examine(directory: Place) -> Examination:
    """Check every file of a shard directory.

    Raises:
        UserError: neither the manifest nor its copy can be read.
    """
    place = locate(directory)
    manifest = read_manifest(place).manifest
    sizes = place.files()
    damage = _check_manifests(place)
    schema = shard_schema(manifest.columns)
    for shard in manifest.shards:
        problem = check_size(place, shard, sizes) or _check_content(place, shard, schema)
        if problem is not None:
            damage.append(Damage(shard.file, "shard", problem))
    for file in manifest.files:
        problem = check_shard(place, file, sizes)
        if problem is not None:
            damage.append(Damage(file.file, kind_of(file.file), problem))
    known = {MANIFEST_NAME, COPY_NAME, *(s.file for s in manifest.shards), *(f.file for f in manifest.files)}
    strays, notes = _strays(place, manifest, [name for name in sizes if name not in known])
    if manifest.schema_version == 1:
        notes.append(
            f"{place}: written by an earlier version, whose manifests have no checksums of {STATE_NAME}/, "
            f"{TOKENIZER_NAME}/ and {REJECTS_NAME}; only the shards could be compared."
        )
    return Examination(place, manifest, damage + strays + _check_totals(place, manifest), notes)


def kind_of(file: str) -> Kind:
    """Return what a file of the manifest's list is."""
    name = file.removeprefix(f"{WORK_NAME}/next/")
    kinds: dict[str, Kind] = {STATE_NAME: "state", TOKENIZER_NAME: "tokenizer"}
    return kinds.get(name.partition("/")[0], "rejects")


def _check_manifests(place: Location) -> list[Damage]:
    """Compare the manifest and its copy; one of them was read."""
    contents: dict[str, bytes | None] = {}
    damage = []
    for name in (MANIFEST_NAME, COPY_NAME):
        try:
            contents[name] = data = (place / name).read_bytes()
            parse(data, place / name)
        except FileNotFoundError:
            contents[name] = None
            damage.append(Damage(name, "manifest", f"{place / name}: expected a manifest, found no such file."))
        except UserError as error:
            damage.append(Damage(name, "manifest", str(error)))
    first = contents[MANIFEST_NAME]
    if first is not None and not damage and first != contents[COPY_NAME]:
        problem = f"{place / COPY_NAME}: expected the same as in {MANIFEST_NAME}, found another manifest."
        damage.append(Damage(COPY_NAME, "manifest", problem))
    if first is not None and parse_version(first) == 1:
        return [item for item in damage if item.file != COPY_NAME]  # the first version had no copy
    return damage


def parse_version(data: bytes) -> int | None:
    """Return the schema version of a manifest's bytes, or None when they cannot be read."""
    try:
        return parse(data, locate(MANIFEST_NAME)).schema_version
    except UserError:
        return None


def _strays(place: Location, manifest: Manifest, names: Sequence[str]) -> tuple[list[Damage], list[str]]:
    """Tell foreign files that readers could take for the directory's own from others."""
    damage, others, temporary, unfinished = [], [], [], False
    for name in names:
        head, _, last = name.rpartition("/")
        if name.startswith(f"{WORK_NAME}/"):
            unfinished = True
        elif is_temporary(last):
            temporary.append(name)
        elif manifest.schema_version == 1 and (head in (STATE_NAME, TOKENIZER_NAME) or name == REJECTS_NAME):
            continue
        elif name.split("/")[0] in (STATE_NAME, TOKENIZER_NAME) or (not head and is_shard_name(last)):
            damage.append(Damage(name, "stray", f"{place / name}: a file that the manifest does not know; remove it."))
        elif not name.startswith("."):
            others.append(name)
    notes = []
    if unfinished:
        notes.append(
            f"{place}: an unfinished run has left its work in {WORK_NAME}/; what the manifest names is whole "
            "without it. The same `annotate run` goes on with it."
        )
    if temporary:
        notes.append(f"{place}: {len(temporary)} temporary files of runs that have died; the next run removes them.")
    if others:
        notes.append(f"{place}: files that are not of the directory: {', '.join(others[:10])}.")
    return damage, notes


def is_shard_name(name: str) -> bool:
    """Tell whether `part-*.parquet`, the pattern by which others read the shards, takes a file in."""
    return name.startswith("part-") and name.endswith(".parquet")


def _check_totals(place: Location, manifest: Manifest) -> list[Damage]:
    """Compare the manifest's totals with the sums over its shards."""
    damage = []
    for name in ("documents", "tokens", "supervised_tokens"):
        total = sum(getattr(shard, "rows" if name == "documents" else name) for shard in manifest.shards)
        if total != getattr(manifest.counts, name):
            problem = f"{name} is {getattr(manifest.counts, name)}, the shards hold {total}."
            damage.append(Damage(MANIFEST_NAME, "manifest", f"{place / MANIFEST_NAME}: {problem}"))
    return damage


def _check_content(place: Location, shard: ShardInfo, schema: pa.Schema) -> str | None:
    """Return what is wrong with a shard's bytes, or inside it; the file is read once."""
    path = place / shard.file
    try:
        table = read_table(path, sha256=shard.sha256)
    except UserError as error:
        return str(error)
    if not table.schema.equals(schema, check_metadata=True):
        return f"{path}: expected the columns\n{schema}\nfound\n{table.schema}"
    lengths = table["input_ids"].combine_chunks().value_lengths().to_numpy()
    for name in table.column_names[4:]:
        column = table[name].combine_chunks()
        if not np.array_equal(column.value_lengths().to_numpy(), lengths):
            return f"{path}: column {name} has rows of other lengths than input_ids."
        if pa.types.is_floating(column.type.value_type) and not np.isfinite(column.flatten().to_numpy()).all():
            return f"{path}: column {name} holds a score that is not finite."
    supervised = int(np.count_nonzero(table["supervised"].combine_chunks().flatten().to_numpy(zero_copy_only=False)))
    expected = (shard.rows, shard.tokens, shard.supervised_tokens)
    found = (table.num_rows, int(lengths.sum()), supervised)
    if found != expected:
        return f"{path}: expected {expected} rows, tokens and supervised tokens; found {found}."
    return None
