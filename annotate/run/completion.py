"""The end of a run: rejects, the manifest, and the step that makes the directory complete.

What enters: every shard of the directory. What leaves: the manifest. Next: whoever reads shards.
"""

from dataclasses import dataclass, replace
from typing import Any

from annotate.run.engines.base import Engine, outcomes
from annotate.run.inputs import Inputs
from annotate.run.publishing import publish
from annotate.run.rejects import SourceRows, WriteRejects
from annotate.run.workspace import ShardRecord, Workspace, has_rejects
from common.errors import UserError
from common.manifest import (
    REJECTS_NAME,
    STATE_NAME,
    TOKENIZER_NAME,
    WORK_NAME,
    Counts,
    GrouperInfo,
    Manifest,
    ShardInfo,
    SourcePart,
)


@dataclass(frozen=True)
class Completion:
    """What the end of a run needs to know."""

    workspace: Workspace
    inputs: Inputs
    engine: Engine
    before: Manifest | None  # of a directory that was complete
    held_is_whole: bool = True  # the rejects of that directory

    def complete(
        self,
        shards: list[ShardInfo],
        made: set[int],
        infos: dict[str, GrouperInfo],
        reports: dict[str, dict[str, Any] | None],
        parts: list[SourcePart],
    ) -> Manifest:
        """Write the rejects and the manifest; return it.

        Args:
            made: the shards that this run has a record of.
            infos: the groupers, in column order.
            reports: what they say; None: what the manifest that was there says.
            parts: the sources, in order.

        Raises:
            UserError: not one document is left, or not one is there to be appended.
        """
        rejects = self._write_rejects(shards, made)
        documents = sum(shard.rows for shard in shards)
        first = parts[-1].first_shard if self.before and len(parts) > len(self.before.parts) else 0
        if not any(shard.rows for shard in shards[first:]):
            self._refuse_rejects(rejects, first)
        held = {grouper.name: grouper for grouper in self.before.groupers} if self.before else {}
        groupers = []
        for name, info in infos.items():
            report = reports[name]
            groupers.append(replace(info, report=held[name].report if report is None else report))
        manifest = Manifest(
            source=parts[0].source,
            template=self.inputs.template,
            tokenizer=self.before.tokenizer if self.before and first else self.inputs.tokenizer,
            max_length=self.inputs.max_length,
            rows_per_shard=parts[0].rows_per_shard,
            groupers=groupers,
            counts=Counts(
                documents=documents,
                tokens=sum(shard.tokens for shard in shards),
                supervised_tokens=sum(shard.supervised_tokens for shard in shards),
                truncated=sum(shard.truncated for shard in shards),
                rejects=rejects,
            ),
            shards=shards,
            appended=parts[1:],
        )
        return publish(self.workspace, manifest, self.before)

    def _refuse_rejects(self, rejects: dict[str, int], first: int) -> None:
        """Raise a `UserError`: not one record has become a document.

        Args:
            rejects: by reason.
            first: the first shard that was to be appended; 0 for a directory of its own.
        """
        if self.before is None:
            self._make_room()
            where = f"{self.workspace.target / REJECTS_NAME} says why, row by row"
        else:
            rejects = {name: rejects[name] - self.before.counts.rejects.get(name, 0) for name in rejects}
            record = ShardRecord.load(self.workspace.record(first))
            where = f"{self.workspace.out} stays as it was"
            if record is not None and record.rejects:
                where = f"the first: {record.rejects[0].message}; {where}"
            self.workspace.work.delete_tree()
        reasons = ", ".join(f"{count} {reason}" for reason, count in rejects.items() if count)
        raise UserError(
            f"--data {self.inputs.info.name}: all {sum(rejects.values())} records were rejected ({reasons}); {where}. "
            f"Is --format {self.inputs.info.format} right?"
        )

    def _make_room(self) -> None:
        """Leave nothing but the rejects, so that the directory can be used with other settings."""
        out = self.workspace.out
        for name in out.names():
            if name.startswith("part-"):
                (out / name).delete()
        for name in (STATE_NAME, TOKENIZER_NAME, WORK_NAME):
            (out / name).delete_tree()

    def _write_rejects(self, shards: list[ShardInfo], made: set[int]) -> dict[str, int]:
        """Write `rejects.jsonl`; return counts by reason."""
        rows, first = [], 0
        for index, shard in enumerate(shards):
            if has_rejects(shard):
                rows.append(SourceRows(index, first, first + shard.source_rows, index in made))
            first += shard.source_rows
        writer = WriteRejects(self.workspace, tuple(rows), self.held_is_whole)
        return dict(outcomes(self.engine, writer, [REJECTS_NAME]))[REJECTS_NAME]
