"""The end of a run: rejects, the manifest, and the step that makes the directory complete.

What enters: every shard of the directory. What leaves: the manifest. Next: whoever reads shards.
"""

from dataclasses import dataclass, replace
from typing import Any

from annotate.run.engines.base import Engine, outcomes
from annotate.run.inputs import Inputs
from annotate.run.publishing import publish
from annotate.run.rejects import SourceRows, WriteRejects
from annotate.run.workspace import Workspace, has_rejects
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
        rows_per_shard: int | None,
    ) -> Manifest:
        """Write the rejects and the manifest; return it.

        Args:
            made: the shards that this run has a record of.
            infos: the groupers, in column order.
            reports: what they say; None: what the manifest that was there says.
            rows_per_shard: None: as the manifest that was there says.

        Raises:
            UserError: not one document is left.
        """
        rejects = self._write_rejects(shards, made)
        documents = sum(shard.rows for shard in shards)
        if documents == 0:
            reasons = ", ".join(f"{count} {reason}" for reason, count in rejects.items())
            if self.before is None:
                self._make_room()
            raise UserError(
                f"--data {self.inputs.info.name}: all {sum(rejects.values())} records were rejected ({reasons}); "
                f"{self.workspace.target / REJECTS_NAME} says why, row by row. "
                f"Is --format {self.inputs.info.format} right?"
            )
        held = {grouper.name: grouper for grouper in self.before.groupers} if self.before else {}
        groupers = []
        for name, info in infos.items():
            report = reports[name]
            groupers.append(held[name] if report is None else replace(info, report=report))
        if rows_per_shard is None:
            assert self.before is not None
            rows_per_shard = self.before.rows_per_shard
        manifest = Manifest(
            source=self.inputs.info,
            template=self.inputs.template,
            tokenizer=self.inputs.tokenizer,
            max_length=self.inputs.max_length,
            rows_per_shard=rows_per_shard,
            groupers=groupers,
            counts=Counts(
                documents=documents,
                tokens=sum(shard.tokens for shard in shards),
                supervised_tokens=sum(shard.supervised_tokens for shard in shards),
                truncated=sum(shard.truncated for shard in shards),
                rejects=rejects,
            ),
            shards=shards,
        )
        return publish(self.workspace, manifest, self.before)

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
