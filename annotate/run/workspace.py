"""The output directory of a run: what is done, what is left, and what may not change.

What enters: the directory, the settings that identify its content, and the groupers asked for. What leaves: a plan of
the work that is left. A directory is in one of three states:

- complete: `manifest.json` is there, and `.work/` is not;
- unfinished: `.work/` holds the plan, the tokenized documents of shards to be scored, and one record a finished shard;
- new.

Every file is written under a temporary name and renamed, so a run that is killed at any moment leaves whole files only.
"""

import dataclasses
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from annotate.records.readers import Reject
from common.errors import UserError
from common.files import atomic_path, read_json, write_json
from common.manifest import (
    COPY_NAME,
    MANIFEST_NAME,
    REJECTS_NAME,
    STATE_NAME,
    TOKENIZER_NAME,
    WORK_NAME,
    GrouperInfo,
    Kind,
    Manifest,
    ShardInfo,
    describe_files,
    load_manifest,
)
from common.shards import check_shard


@dataclass(frozen=True)
class ShardRecord:
    """What is known of a finished shard before the manifest is written."""

    shard: ShardInfo
    columns: dict[str, Kind]
    rejects: list[Reject] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write the record, atomically."""
        write_json(path, dataclasses.asdict(self))

    @classmethod
    def load(cls, path: Path) -> "ShardRecord":
        """Read a record."""
        raw = read_json(path)
        rejects = [Reject(**reject) for reject in raw["rejects"]]
        return cls(ShardInfo(**raw["shard"]), raw["columns"], rejects)


@dataclass(frozen=True)
class GrouperPlan:
    """A grouper of the plan, in the form that the manifest will have."""

    name: str
    parameters: dict[str, Any]
    columns: dict[str, Kind]


class Workspace:
    """One output directory.

    Attributes:
        groupers: the groupers that the directory will hold when it is complete, in column order.
        notes: sentences for the user: shards found damaged, a run that goes on.
    """

    def __init__(self, out: Path):
        self.out = out
        self.state = out / STATE_NAME
        self.tokenizer = out / TOKENIZER_NAME
        self.work = out / WORK_NAME
        self.tokens = self.work / "tokens"
        self.records = self.work / "records"
        self.groupers: list[GrouperPlan] = []
        self.notes: list[str] = []

    def open(self, settings: dict[str, Any], requested: list[GrouperPlan]) -> bool:
        """Make the directory ready for work; return False when there is nothing to do.

        Args:
            settings: what identifies the content, as JSON values: source, template, tokenizer, lengths.
            requested: the groupers of this run.

        Raises:
            UserError: the directory cannot be written, holds something else, or was made with other settings.
        """
        self._create()
        if (self.out / MANIFEST_NAME).is_file():
            manifest = load_manifest(self.out)
            self._refuse_changes(identity(manifest), settings)
            held = [GrouperPlan(g.name, g.parameters, g.columns) for g in manifest.groupers]
            self.groupers = self._merge(held, requested)
            damaged = [problem for shard in manifest.shards if (problem := check_shard(self.out, shard))]
            missing_state = [g.name for g in manifest.groupers if not self._state_is_whole(g)]
            if not damaged and not missing_state and len(self.groupers) == len(held):
                shutil.rmtree(self.work, ignore_errors=True)  # a kill right after the manifest was written
                return False
            self.notes += [f"{problem} It is made again." for problem in damaged]
            self._reopen(manifest, settings)
        elif (self.work / "plan.json").is_file():
            plan = read_json(self.work / "plan.json")
            self._refuse_changes(plan["settings"], settings)
            self.groupers = self._merge([GrouperPlan(**grouper) for grouper in plan["groupers"]], requested)
            self._save_plan(settings)
            self.notes.append(f"{self.out}: going on with an unfinished run ({len(self.finished())} shards are done).")
        else:
            foreign = [path.name for path in self.out.iterdir() if path.name != WORK_NAME]
            if foreign:
                raise UserError(
                    f"--out {self.out}: expected a new, empty or unfinished shard directory, found {foreign[0]!r} and "
                    "no manifest. Give another directory."
                )
            self.groupers = requested
            self._save_plan(settings)
        self.tokens.mkdir(parents=True, exist_ok=True)
        self.records.mkdir(parents=True, exist_ok=True)
        return True

    def finished(self) -> dict[int, ShardRecord]:
        """Return the records of the shards whose files are what the records say, by shard index."""
        found = {}
        for path in sorted(self.records.glob("part-*.json")):
            record = ShardRecord.load(path)
            if check_shard(self.out, record.shard) is None:
                found[int(path.stem.removeprefix("part-"))] = record
        return found

    def record_path(self, index: int) -> Path:
        """Return the path of a shard's record."""
        return self.records / f"part-{index:05d}.json"

    def token_path(self, index: int) -> Path:
        """Return the path of a shard's tokenized documents."""
        return self.tokens / f"part-{index:05d}.arrow"

    def write_rejects(self, rejects: list[Reject]) -> None:
        """Write `rejects.jsonl` in source order; an empty file says that there were none."""
        with atomic_path(self.out / REJECTS_NAME) as temporary, open(temporary, "w", encoding="utf-8") as file:
            for reject in sorted(rejects, key=lambda reject: reject.source_row):
                file.write(reject.as_json() + "\n")

    def complete(self, manifest: Manifest) -> None:
        """Write the manifest, which makes the directory complete, and remove what only unfinished runs need."""
        dataclasses.replace(manifest, files=describe_files(self.out)).save(self.out)
        shutil.rmtree(self.work, ignore_errors=True)

    def _create(self) -> None:
        if self.out.exists() and not self.out.is_dir():
            raise UserError(f"--out {self.out}: expected a directory, found a file. Give another path.")
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            probe = self.out / f".writable.{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"--out {self.out}: cannot be written ({error.strerror}). Give another directory."
            ) from error

    def _state_is_whole(self, grouper: GrouperInfo) -> bool:
        from annotate.groupers import grouper_class

        kind = grouper_class(grouper.name)
        return not kind.needs_fit or (self.state / f"{grouper.name}.parquet").is_file()

    def _merge(self, held: list[GrouperPlan], requested: list[GrouperPlan]) -> list[GrouperPlan]:
        """Add the requested groupers to those that are there."""
        by_name = {grouper.name: grouper for grouper in held}
        for grouper in requested:
            before = by_name.setdefault(grouper.name, grouper)
            if before != grouper:
                changed = _differences(before.parameters, grouper.parameters) or "other columns"
                raise UserError(
                    f"--out {self.out} holds {grouper.name} with other settings: {changed}. "
                    "Give the same settings, or another directory."
                )
        return list(by_name.values())

    def _refuse_changes(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        if before != now:
            raise UserError(
                f"--out {self.out} was made with other settings: {_differences(before, now)}. "
                "Give the same settings to go on, or another directory."
            )

    def _save_plan(self, settings: dict[str, Any]) -> None:
        self.work.mkdir(exist_ok=True)
        plan = {"settings": settings, "groupers": [dataclasses.asdict(grouper) for grouper in self.groupers]}
        write_json(self.work / "plan.json", plan)

    def _reopen(self, manifest: Manifest, settings: dict[str, Any]) -> None:
        """Turn a complete directory into an unfinished one that keeps everything that is whole."""
        self.records.mkdir(parents=True, exist_ok=True)
        rejects: dict[int, list[Reject]] = {}
        path = self.out / REJECTS_NAME
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            reject = Reject(**json.loads(line))
            rejects.setdefault(reject.source_row // manifest.rows_per_shard, []).append(reject)
        for index, shard in enumerate(manifest.shards):
            ShardRecord(shard, manifest.columns, rejects.get(index, [])).save(self.record_path(index))
        self._save_plan(settings)
        (self.out / COPY_NAME).unlink(missing_ok=True)
        (self.out / MANIFEST_NAME).unlink()


def identity(manifest: Manifest) -> dict[str, Any]:
    """Return what identifies the content of a directory: two runs with equal identities make equal documents."""
    return content_identity(
        content_hash=manifest.source.content_hash,
        format_name=manifest.source.format,
        limit=manifest.source.limit,
        template=manifest.template,
        fingerprint=manifest.tokenizer.fingerprint,
        max_length=manifest.max_length,
        rows_per_shard=manifest.rows_per_shard,
    )


def content_identity(
    content_hash: str,
    format_name: str,
    limit: int | None,
    template: str,
    fingerprint: str,
    max_length: int,
    rows_per_shard: int,
) -> dict[str, Any]:
    """Return the settings that determine the documents and their tokens. Paths and names are not among them."""
    return {
        "source content": content_hash,
        "--format": format_name,
        "--limit": limit,
        "--template": template,
        "tokenizer fingerprint": fingerprint,
        "--max-length": max_length,
        "--rows-per-shard": rows_per_shard,
    }


def _differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Say which values differ."""

    def short(value: Any) -> str:
        text = str(value)
        return f"{text[:12]}…" if len(text) == 64 else text

    changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return "; ".join(f"{key} was {short(before.get(key))}, now {short(now.get(key))}" for key in changed)
