"""Which shards of a finished directory a run is about: one of its sources, all of them, or records that are appended.

What enters: the settings, what they name (`annotate.run.inputs`), and the manifest. What leaves: a `Task`. Next:
`annotate.run.ledger`.

Appended records become shards after those that are there, which stay as they are. Their documents' ids count the equal
records of all shards before them, their rows go on from there, and the manifest names their source beside the first.
Groupers that were fitted on the corpus keep their state, and the manifest says on how many shards it was fitted; with
`--refit` they are fitted on all shards, and their columns are written anew.
"""

import hashlib
from dataclasses import dataclass, replace
from typing import Any

from annotate.groupers import grouper_class
from annotate.run.inputs import Inputs, differences, from_manifest, refuse_changes
from annotate.run.settings import Settings
from common.errors import UserError
from common.manifest import Manifest, SourcePart, render
from common.shards import shard_name

# What all documents of a directory have in common, whichever source they come from.
COMMON = ("--template", "tokenizer fingerprint", "--max-length", "--overlong")
SCORES_THE_SAME = ("device", "batch_tokens")  # flags of groupers that may be given for any of them


@dataclass(frozen=True)
class Task:
    """The shards that the source at hand gives, and what is done with the others.

    Attributes:
        first_shard, first_row: where its shards and records begin in the directory.
        num_shards: None: as many as the source gives.
        appends: they come after those of the manifest.
        refit: groupers whose state is made again from all shards, and their columns with it.
    """

    first_shard: int = 0
    first_row: int = 0
    num_shards: int | None = None
    appends: bool = False
    refit: frozenset[str] = frozenset()

    def covers(self, index: int) -> bool:
        """Tell whether the source at hand gives this shard."""
        behind = self.num_shards is not None and index >= self.first_shard + self.num_shards
        return index >= self.first_shard and not behind

    @property
    def changes(self) -> bool:
        """Tell whether a finished directory is to become another one, whatever its columns."""
        return self.appends or bool(self.refit)


def check_mode(settings: Settings, manifest: Manifest | None) -> None:
    """Refuse `--append` and `--refit` where there is nothing to append to, or nothing that is fitted."""
    asked = [name for name, given in (("--append", settings.append), ("--refit", settings.refit)) if given]
    if not asked:
        return
    if manifest is None:
        raise UserError(
            f"{' '.join(asked)}: expected a finished shard directory, found none at {settings.out}. Annotate into it "
            "first, by the same command without the flag; an unfinished one goes on by its own command."
        )
    held = [grouper.name for grouper in manifest.groupers]
    new = [name for name in settings.groupers if name not in held]
    if new:
        raise UserError(
            f"--grouper {new[0]}: {settings.out} holds {', '.join(held)}; {' and '.join(asked)} works with these. "
            "Add a column by a run of its own, before or after."
        )
    changed = [name for name in settings.options.flags if name not in SCORES_THE_SAME]
    if changed and not settings.groupers:
        raise UserError(
            f"--{changed[0].replace('_', '-')}: {' and '.join(asked)} takes the groupers' settings from "
            f"{settings.out}. Drop the flag, or name the grouper with --grouper, to have it compared."
        )
    if settings.refit and not any(grouper_class(name).needs_fit for name in held):
        raise UserError(f"--refit: none of {', '.join(held)} is fitted on the corpus. Drop the flag.")


def choose_task(settings: Settings, inputs: Inputs, manifest: Manifest) -> tuple[Task, Inputs, list[str]]:
    """Return the task, the inputs with what it decides, and sentences for the user.

    Raises:
        UserError: the source is not the directory's and is not to be appended, or does not fit.
    """
    notes = []
    task, part = _held_part(settings, inputs, manifest)
    if part is not None:
        inputs = replace(inputs, rows_per_shard=part.rows_per_shard)
        if settings.append:
            notes.append(
                f"{settings.out} holds the records of {inputs.info.name} already, from {shard_name(part.first_shard)} "
                f"on: nothing is appended. (To have them twice, annotate {inputs.info.name}@2 into another directory.)"
            )
    elif settings.append:
        _check_appended(settings, inputs, manifest)
        task = Task(len(manifest.shards), _rows(manifest, len(manifest.shards)), appends=True)
    fitted = {info.name: info.fitted_shards for info in manifest.groupers if grouper_class(info.name).needs_fit}
    if settings.refit:
        stale = [name for name, shards in fitted.items() if task.appends or shards is not None]
        task = replace(task, refit=frozenset(stale))
        if not stale:
            notes.append(f"--refit: {', '.join(fitted)} of {settings.out} counts every shard already.")
    elif task.appends and fitted:
        notes.append(
            f"{', '.join(fitted)}: the state stays as it was fitted on the shards before; "
            "--refit fits it on all of them."
        )
    return task, inputs, notes


def check_unfinished(out: object, before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Compare what an unfinished run has left beside a finished directory with what is to be done now.

    Args:
        before, now: `work_of` the two.

    Returns:
        Whether that work is of use.

    Raises:
        UserError: it is an unfinished `--append` or `--refit`, and this is another command.
    """
    if before == now:
        return True
    if before["manifest"] != now["manifest"]:
        return False  # it has become the directory's; its run was killed while it cleared up
    if before["append"] is None and not before["refit"]:
        return False
    what = " ".join(
        [f"--append of {before['name']}"] * (before["append"] is not None) + ["--refit"] * bool(before["refit"])
    )
    both = before["append"] is not None and now["append"] is not None
    changed = differences(before["append"], now["append"]) if both else ""
    raise UserError(
        f"--out {out}: an unfinished {what} has left its work there{f' ({changed})' if changed else ''}. Give the same "
        f"command again to finish it, or delete {out}/.work to give it up; the finished shards are not touched by that."
    )


def work_of(manifest: Manifest | None, task: Task, inputs: Inputs) -> dict[str, Any]:
    """Return what tells the unfinished work of two commands apart, as JSON values."""
    return {
        "manifest": hashlib.sha256(render(manifest)).hexdigest() if manifest is not None else None,
        "append": inputs.identity() if task.appends else None,
        "name": inputs.info.name if task.appends else None,
        "refit": sorted(task.refit),
    }


def parts_after(manifest: Manifest, task: Task, inputs: Inputs, rows_per_shard: int) -> list[SourcePart]:
    """Return the sources of the directory as they will be; one that was read now is named as it was read now."""
    parts = list(manifest.parts)
    if task.appends:
        return [*parts, SourcePart(inputs.info, task.first_shard, rows_per_shard)]
    if inputs.source is None:
        return parts
    return [replace(part, source=inputs.info) if part.first_shard == task.first_shard else part for part in parts]


def part_of(manifest: Manifest, index: int) -> SourcePart:
    """Return the source that a shard comes from."""
    return [part for part in manifest.parts if part.first_shard <= index][-1]


def _held_part(settings: Settings, inputs: Inputs, manifest: Manifest) -> tuple[Task, SourcePart | None]:
    """Find the source at hand among the directory's; without one, the run is about every shard."""
    if inputs.source is None:
        return Task(), None
    parts = manifest.parts
    stops = [part.first_shard for part in parts[1:]] + [len(manifest.shards)]
    now = inputs.identity()
    for part, stop in zip(parts, stops, strict=True):
        if settings.rows_per_shard is None:
            now["--rows-per-shard"] = part.rows_per_shard
        if from_manifest(manifest, part).identity() == now:
            return Task(part.first_shard, _rows(manifest, part.first_shard), stop - part.first_shard), part
    if not settings.append:
        same = [part for part in parts if part.source.content_hash == inputs.info.content_hash]
        part = (same or parts)[0]
        if settings.rows_per_shard is None:
            now["--rows-per-shard"] = part.rows_per_shard
        refuse_changes(settings.out, from_manifest(manifest, part).identity(), now, "--append to add other records")
    return Task(), None


def _check_appended(settings: Settings, inputs: Inputs, manifest: Manifest) -> None:
    """Raise a `UserError` where a new source does not fit to the directory."""
    now = inputs.identity()
    for part in manifest.parts:
        before = from_manifest(manifest, part).identity()
        if part.source.content_hash == inputs.info.content_hash:
            raise UserError(
                f"--append: {settings.out} holds the records of {inputs.info.name} already, read with other settings: "
                f"{differences(before, now)}. Annotate them into another directory."
            )
    before = from_manifest(manifest).identity()
    common = [{key: identity[key] for key in COMMON} for identity in (before, now)]
    if common[0] != common[1]:
        raise UserError(
            f"--append: the documents of {settings.out} were made with other settings: {differences(*common)}. "
            "Give the same settings, or another directory."
        )


def _rows(manifest: Manifest, shards: int) -> int:
    return sum(shard.source_rows for shard in manifest.shards[:shards])
