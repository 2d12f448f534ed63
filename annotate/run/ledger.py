"""What each shard of a directory has, and what it lacks.

What enters: the manifest that holds, and the records of what this run has finished. What leaves: answers for
`annotate.run.job`: which shards come from the source, where a shard's tokens are, which groupers are to be fitted.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

from annotate.groupers import grouper_class
from annotate.run.appending import Task, part_of
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
        task: which shards the source at hand gives.
        done: the records of shards that this run has finished, in this process or before.
        problems: finished shards that are not whole, and what is wrong with them.
        aside: shards that were given up, and why.
        damaged_files: what is wrong with files beside the shards, by name.
        tokenized: shards whose tokens another run has left, from a source that is not at hand now.
        respanned: finished shards that are tokenized again, for the spans.
    """

    workspace: Workspace
    manifest: Manifest | None
    groupers: dict[str, dict[str, Kind]]
    task: Task = field(default_factory=Task)
    done: dict[int, ShardRecord] = field(default_factory=dict)
    problems: dict[int, str] = field(default_factory=dict)
    aside: dict[int, str] = field(default_factory=dict)
    damaged_files: dict[str, str] = field(default_factory=dict)
    tokenized: set[int] = field(default_factory=set)
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
        is_whole = index < len(self.held) and index not in self.problems
        return is_whole and set(self._kept()) == set(self.kinds)

    def needs_source(self) -> bool:
        """Tell whether shards are to be made from the source."""
        return self.manifest is None or self.task.appends or bool(set(self.problems) - set(self.done))

    def from_source(self, num_shards: int) -> list[int]:
        """Return the shards that are to be made from the source at hand."""
        wanted = (i for i in range(num_shards) if i in self.problems or i >= len(self.held))
        return [i for i in wanted if i not in self.done and self.task.covers(i)]

    def elsewhere(self) -> set[int]:
        """Return the shards that another source than the one at hand would have to give again."""
        return {i for i in self.problems if not (i in self.done or i in self.tokenized or self.task.covers(i))}

    def respan(self, num_shards: int) -> list[int]:
        """Return the shards that lack columns, where the source gives all of them their spans.

        Shards do not hold the spans; the source gives them for sure.
        """
        lacking = [i for i in range(num_shards) if not self.is_done(i) and self.task.covers(i)]
        self.respanned = {i for i in lacking if i not in self.problems and (i < len(self.held) or i in self.done)}
        return lacking

    def where(self, index: int) -> ToScore:
        """Say where a shard's tokens are."""
        if index in self.done:
            record = self.done[index]
            return ToScore(index, record.shard, tuple(record.columns), index in self.respanned)
        if index < len(self.held) and index not in self.problems:
            return ToScore(index, self.held[index], tuple(self._kept()), index in self.respanned)
        return ToScore(index)

    def _kept(self) -> list[str]:
        """Return the columns that finished shards have and keep."""
        groupers = self.manifest.groupers if self.manifest is not None else []
        return [name for grouper in groupers if grouper.name not in self.task.refit for name in grouper.columns]

    def unfitted(self) -> list[str]:
        """Return the groupers whose state is to be made."""
        found = []
        for name in self.groupers:
            file = f"{name}.parquet"
            whole = name in self.held_groupers - self.task.refit and f"{STATE_NAME}/{file}" not in self.damaged_files
            whole = whole and (self.workspace.held_state / file).is_file()
            if grouper_class(name).needs_fit and not whole and not (self.workspace.state / file).is_file():
                found.append(name)
        return found

    def fitted_shards(self, name: str) -> int | None:
        """Return how many of the first shards a grouper's state counts; None: every shard, or it fits nothing."""
        if name not in self.held_groupers or name in self.task.refit or not grouper_class(name).needs_fit:
            return None
        assert self.manifest is not None
        before = next(grouper.fitted_shards for grouper in self.manifest.groupers if grouper.name == name)
        return len(self.held) if before is None and self.task.appends else before

    def lacking(self, from_source: bool) -> list[str]:
        """Return the groupers that some shard lacks; all of them where a shard comes from the source."""
        if from_source:
            return list(self.groupers)
        held = set(self._kept()) if self.manifest is not None else set(self.kinds)
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

    def refuse_without_source(self) -> None:
        """Raise a `UserError` that names the shards which only a source that is not given can give again."""
        assert self.manifest is not None
        lost = {index: self.problems[index] for index in sorted(set(self.problems) - set(self.done))}
        parts = [part_of(self.manifest, index) for index in lost]
        sources = {part.first_shard: part.source for part in parts}
        where = "; ".join(f"{source.name} ({source.location})" for source in sources.values())
        first = " Do that before you append." if self.task.appends else ""
        one = "it was" if len(sources) == 1 else "one after another; they were"
        raise UserError(
            f"{self.workspace.out}: {len(lost)} shard(s) can only be made again from the source:\n"
            f"{_listed(sorted(set(lost.values())))}\nGive it with --data; {one} {where}.{first}"
        )


def _listed(lines: Iterable[str]) -> str:
    return "\n".join(f"  - {line}" for line in lines)
