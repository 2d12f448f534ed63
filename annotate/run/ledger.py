"""What each shard of a directory has, and what it lacks.

What enters: the manifest that holds, and the records of what this run has finished. What leaves: answers for
`annotate.run.job`: which shards come from the source, where a shard's tokens are, which groupers are to be fitted.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

from annotate.groupers import grouper_class
from annotate.run.scoring import ToScore
from annotate.run.workspace import ShardRecord, Workspace, has_rejects
from common.errors import UserError
from common.manifest import REJECTS_NAME, STATE_NAME, Kind, Manifest, ShardInfo
from common.shards import shard_name


@dataclass
class Ledger:
    """The state of every shard, by number.

    Attributes:
        manifest: of a directory that is complete; None for a new one.
        groupers: the columns of every grouper that the directory will hold, in column order.
        done: the records of shards that this run has finished, in this process or before.
        problems: finished shards that are not whole, and what is wrong with them.
        aside: shards that were given up, and why.
        damaged_files: what is wrong with files beside the shards, by name.
        respanned: finished shards that are tokenized again, for the spans.
    """

    workspace: Workspace
    manifest: Manifest | None
    groupers: dict[str, dict[str, Kind]]
    done: dict[int, ShardRecord] = field(default_factory=dict)
    problems: dict[int, str] = field(default_factory=dict)
    aside: dict[int, str] = field(default_factory=dict)
    damaged_files: dict[str, str] = field(default_factory=dict)
    respanned: set[int] = field(default_factory=set)

    @cached_property
    def kinds(self) -> dict[str, Kind]:
        """The columns that a finished shard has, in order."""
        return {name: kind for columns in self.groupers.values() for name, kind in columns.items()}

    @property
    def held(self) -> list[ShardInfo]:
        """The shards of the manifest."""
        return self.manifest.shards if self.manifest is not None else []

    @property
    def held_groupers(self) -> set[str]:
        """The groupers of the manifest."""
        return {grouper.name for grouper in self.manifest.groupers} if self.manifest is not None else set()

    def note_files(self, damaged: dict[str, str]) -> None:
        """Take note of what is wrong with files beside the shards."""
        self.damaged_files = damaged
        if REJECTS_NAME in damaged:  # which records were rejected is only known from the source
            lost = [index for index, shard in enumerate(self.held) if has_rejects(shard)]
            self.problems |= dict.fromkeys(lost, damaged[REJECTS_NAME])

    def note_damage(self, index: int, problem: str) -> None:
        """Take note that a finished shard is not whole: it is made again from the source."""
        self.problems[index] = problem
        self.done.pop(index, None)

    def is_done(self, index: int) -> bool:
        """Tell whether a shard has every column."""
        if index in self.done:
            return self.done[index].columns == self.kinds
        return self.manifest is not None and self.manifest.columns == self.kinds

    def needs_source(self) -> bool:
        """Tell whether shards are to be made from the source."""
        return self.manifest is None or bool(set(self.problems) - set(self.done))

    def from_source(self, num_shards: int) -> list[int]:
        """Return the shards that are to be made from the source."""
        return [i for i in range(num_shards) if i not in self.done and (i in self.problems or self.manifest is None)]

    def respan(self, num_shards: int) -> list[int]:
        """Return the shards that lack columns, where the source gives all of them their spans.

        Shards do not hold the spans; the source gives them for sure.
        """
        lacking = [index for index in range(num_shards) if not self.is_done(index)]
        self.respanned = set(lacking) - set(self.problems) if self.manifest or self.done else set()
        return lacking

    def where(self, index: int) -> ToScore:
        """Say where a shard's tokens are."""
        if index in self.done:
            record = self.done[index]
            return ToScore(index, record.shard, tuple(record.columns), index in self.respanned)
        if self.manifest is not None and index not in self.problems:
            return ToScore(index, self.held[index], tuple(self.manifest.columns), index in self.respanned)
        return ToScore(index)

    def unfitted(self) -> list[str]:
        """Return the groupers whose state is to be made."""
        found = []
        for name in self.groupers:
            file = f"{name}.parquet"
            whole = name in self.held_groupers and f"{STATE_NAME}/{file}" not in self.damaged_files
            whole = whole and (self.workspace.held_state / file).is_file()
            if grouper_class(name).needs_fit and not whole and not (self.workspace.state / file).is_file():
                found.append(name)
        return found

    def lacking(self, from_source: bool) -> list[str]:
        """Return the groupers that some shard lacks; all of them where a shard comes from the source."""
        if from_source:
            return list(self.groupers)
        held = set(self.manifest.columns) if self.manifest is not None else set(self.kinds)
        for record in self.done.values():
            held &= set(record.columns)
        return [name for name, columns in self.groupers.items() if not set(columns) <= held]

    def shards(self, num_shards: int) -> list[ShardInfo]:
        """Return every shard of the directory as it will be.

        Raises:
            UserError: some were given up; names them.
        """
        if self.aside:
            raise UserError(
                f"{self.workspace.out}: {len(self.aside)} shard(s) were set aside, the others are kept:\n"
                f"{_listed(f'{shard_name(index)}: {reason}' for index, reason in sorted(self.aside.items()))}\n"
                "If memory ran out, use fewer --workers or smaller --batch-tokens. Run the same command again to try "
                "these shards again."
            )
        return [self.done[index].shard if index in self.done else self.held[index] for index in range(num_shards)]

    def refuse_without_source(self, name: str, location: str) -> None:
        """Raise a `UserError` that names the shards which only the source can give again, and the source."""
        raise UserError(
            f"{self.workspace.out}: {len(self.problems)} shard(s) can only be made again from the source:\n"
            f"{_listed(sorted(set(self.problems.values())))}\nGive it with --data; it was {name} ({location})."
        )


def _listed(lines: Iterable[str]) -> str:
    return "\n".join(f"  - {line}" for line in lines)
