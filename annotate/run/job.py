"""The work of one run, stage after stage, on any engine.

What enters: what a directory is to hold, and what it holds. What leaves: finished shards, then the manifest. The driver
sees shard numbers and counts; the files of the work directory carry everything else from stage to stage.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console

from annotate.groupers import grouper_class
from annotate.groupers.base import Grouper
from annotate.run.checking import CheckShards, FindFinished, blocks, check_files, held_blocks
from annotate.run.completion import Completion
from annotate.run.engines.base import Engine, SetAside, outcomes
from annotate.run.fitting import BLOCK_SHARDS, Corpus, CountTerms, Fit, SumBlocks
from annotate.run.inputs import Inputs
from annotate.run.planning import SourcePlan, plan_source
from annotate.run.progress import RunProgress
from annotate.run.scoring import Damaged, Score, ToScore
from annotate.run.tokenizing import ShardRows, Tokenize
from annotate.run.workspace import ShardRecord, Workspace, has_rejects
from common.errors import UserError
from common.manifest import REJECTS_NAME, STATE_NAME, TOKENIZER_NAME, GrouperInfo, Kind, Manifest, ShardInfo
from common.shards import shard_name


@dataclass(frozen=True)
class Outcome:
    """What a job leaves."""

    manifest: Manifest
    already_complete: bool
    shards_made: int
    tokens_made: int


class Job:
    """What is to be done in one directory.

    Args:
        groupers: the columns of every grouper that the directory will hold, in column order.
        build: returns a grouper by name.
    """

    def __init__(
        self,
        workspace: Workspace,
        inputs: Inputs,
        engine: Engine,
        console: Console,
        manifest: Manifest | None,
        groupers: dict[str, dict[str, Kind]],
        build: Callable[[str], Grouper],
    ):
        self.workspace = workspace
        self.inputs = inputs
        self.engine = engine
        self.console = console
        self.manifest = manifest
        self.groupers = groupers
        self.build = build
        self.kinds = {name: kind for columns in groupers.values() for name, kind in columns.items()}
        self.problems: dict[int, str] = {}  # finished shards that are not whole
        self.aside: dict[int, str] = {}  # shards that were given up
        self.damaged_files: dict[str, str] = {}
        self.respanned: set[int] = set()  # finished shards that are tokenized again, for the spans
        self.shards_made = self.tokens_made = 0
        self.plan: SourcePlan | None = None

    def is_complete(self) -> bool:
        """Look at what a complete directory holds; tell whether nothing is to be done."""
        if self.manifest is None:
            return False
        out, shards = self.workspace.out, self.manifest.shards
        self.damaged_files = check_files(out, self.manifest)
        for problem in self.damaged_files.values():
            self._note(f"{problem} It is made again.")
        if REJECTS_NAME in self.damaged_files:  # which records were rejected is only known from the source
            lost = [index for index, shard in enumerate(shards) if has_rejects(shard)]
            self.problems |= dict.fromkeys(lost, self.damaged_files[REJECTS_NAME])
        if set(self.groupers) != {grouper.name for grouper in self.manifest.groupers}:
            return False  # the stages check the shards, which they read anyway
        for _, problems in outcomes(self.engine, CheckShards(out), held_blocks(shards)):
            for index, problem in problems.items():
                self._damaged(index, problem)
        return not self.problems and not self.damaged_files

    def do(self, infos: dict[str, GrouperInfo], before_the_end: Callable[[], object]) -> Outcome:
        """Do everything that is left, and complete the directory.

        Args:
            infos: the groupers as the manifest will name them, still without their reports.
            before_the_end: called when all shards are there and the manifest is not.

        Raises:
            UserError: shards were given up, or cannot be made without the source, or no document is left.
        """
        with RunProgress(self.console) as progress:
            self.engine.tell = progress.note
            self.progress = progress
            done = self._finished()
            known = -1
            while known < len(self.problems):  # finished shards that turn out to be damaged are made again
                known = len(self.problems)
                self._plan_source(done)
                self._make(done)
        self._refuse_gaps()
        before_the_end()
        held = self.manifest.shards if self.manifest is not None else []
        shards = [done[i].shard if i in done else held[i] for i in range(self.num_shards)]
        reports = {name: self._report(name, shards) for name in infos}
        completion = Completion(
            self.workspace, self.inputs, self.engine, self.manifest, REJECTS_NAME not in self.damaged_files
        )
        rows_per_shard = self.plan.rows_per_shard if self.plan else None
        manifest = completion.complete(shards, set(done), infos, reports, rows_per_shard)
        return Outcome(manifest, False, self.shards_made, self.tokens_made)

    def _finished(self) -> dict[int, ShardRecord]:
        """Return the records of shards that an earlier process of this run has finished."""
        done: dict[int, ShardRecord] = {}
        numbers = [int(name[5:-5]) for name in (self.workspace.work / "records").names() if name.startswith("part-")]
        finder = FindFinished(self.workspace, self.kinds)
        for _, found in outcomes(self.engine, finder, blocks(max(numbers, default=-1) + 1)):
            done |= found
        return done

    @property
    def num_shards(self) -> int:
        """Shards of the directory."""
        if self.manifest is not None:
            return len(self.manifest.shards)
        assert self.plan is not None
        return self.plan.num_shards

    def _plan_source(self, done: dict[int, ShardRecord], needed: bool = False) -> None:
        """Plan the source where shards are to be made from it, unless that was done."""
        needed = needed or self.manifest is None or bool(set(self.problems) - set(done))
        if self.plan is not None or not needed:
            return
        self._need_source()
        place = self.workspace.source / "plan.json"
        inputs, source = self.inputs, self.inputs.source
        assert source is not None
        with suppress(FileNotFoundError):
            self.plan = SourcePlan.load(place)
            return
        self.workspace.source.delete_tree()
        self.progress.start("plan")
        work, rows = self.workspace.source, inputs.rows_per_shard
        self.plan = plan_source(source, self.engine, work, inputs.info.limit, rows)
        self.plan.save(place)

    def _need_source(self) -> None:
        """Raise a `UserError` where shards are to be made again and no source was given."""
        if self.inputs.source is None:
            listed = "\n".join(f"  - {problem}" for problem in sorted(set(self.problems.values())))
            raise UserError(
                f"{self.workspace.out}: {len(self.problems)} shard(s) can only be made again from the source:\n"
                f"{listed}\nGive it with --data; it was {self.inputs.info.name} ({self.inputs.info.location})."
            )

    def _damaged(self, index: int, problem: str) -> None:
        self._note(f"{problem} It is made again.")
        self.problems[index] = problem

    def _note(self, sentence: str) -> None:
        self.console.print(sentence, highlight=False)

    # The stages

    def _make(self, done: dict[int, ShardRecord]) -> None:
        """Run the stages over the shards that need them; those that turn out to be damaged are for the next time."""
        source = [i for i in range(self.num_shards) if i not in done and (i in self.problems or not self.manifest)]
        fits = self._fits()
        groupers = tuple(self.build(name) for name in self._lacking(done, bool(source)))
        uses_model = any(grouper.uses_model for grouper in groupers)
        if self.inputs.source is not None and any(grouper.needs_spans for grouper in groupers):
            # Shards do not hold the spans; the source gives them for sure.
            source = [index for index in range(self.num_shards) if not self._is_done(index, done)]
            self.respanned = set(source) - set(self.problems) if self.manifest or done else set()
            self._plan_source(done, needed=bool(source))
        tokenized = self._tokenize(source) if source else iter(())
        if fits or not (uses_model and self.engine.device == "cuda"):
            # Fits count the whole corpus; and on CPUs both stages want the same cores. A GPU does not wait.
            tokenized = iter(sorted(tokenized))
        if fits and (self.aside or not self._fit(fits, done)):
            return  # what is fitted needs every shard
        expected = set(source)
        held = (i for i in range(self.num_shards) if i not in expected and not self._is_done(i, done))
        items = (self._where(i, done) for i in chain(held, tokenized))
        self.progress.start("score")
        tokenizer = self._tokenizer_name(), self.inputs.tokenizer.revision
        stage = Score(self.workspace, self.kinds, groupers, tokenizer)
        for item, result in self.engine.map(stage, items, uses_model=uses_model):
            if isinstance(result, SetAside):
                self.aside[item.index] = result.reason
            elif isinstance(result, Damaged):
                self._damaged(item.index, result.problem)
            else:
                done[item.index] = result
                self.shards_made += 1
                self.tokens_made += result.shard.tokens
                shard = result.shard
                self.progress.advance("score", shard.source_rows, shard.rows, shard.tokens, 0, self._total())

    def _is_done(self, index: int, done: dict[int, ShardRecord]) -> bool:
        """Tell whether a shard has every column."""
        if index in done:
            return done[index].columns == self.kinds
        return self.manifest is not None and self.manifest.columns == self.kinds

    def _fits(self) -> tuple[Grouper, ...]:
        """Return the groupers whose state is to be made."""
        held = {grouper.name for grouper in self.manifest.groupers} if self.manifest else set()
        found = []
        for name in self.groupers:
            if not grouper_class(name).needs_fit:
                continue
            file = f"{name}.parquet"
            whole = name in held and f"{STATE_NAME}/{file}" not in self.damaged_files
            whole = whole and (self.workspace.held_state / file).is_file()
            if not whole and not (self.workspace.state / file).is_file():
                found.append(self.build(name))
        return tuple(found)

    def _lacking(self, done: dict[int, ShardRecord], from_source: bool) -> list[str]:
        """Return the groupers that some shard lacks."""
        if from_source:
            return list(self.groupers)
        held = set(self.manifest.columns) if self.manifest else set(self.kinds)
        for record in done.values():
            held &= set(record.columns)
        return [name for name, columns in self.groupers.items() if not set(columns) <= held]

    def _where(self, index: int, done: dict[int, ShardRecord]) -> ToScore:
        """Say where a shard's tokens are."""
        if index in done:
            return ToScore(index, done[index].shard, tuple(done[index].columns), index in self.respanned)
        if self.manifest is not None and index not in self.problems:
            held, kept = self.manifest.shards[index], tuple(self.manifest.columns)
            return ToScore(index, held, kept, index in self.respanned)
        return ToScore(index)

    def _tokenize(self, indices: list[int]) -> Iterator[int]:
        """Tokenize shards from the source; yield the numbers of those that are."""
        assert self.plan is not None
        plan, tokenizer = self.plan, self.inputs.tokenizer
        stage = Tokenize(
            workspace=self.workspace,
            tokenizer=self._tokenizer_name(),
            revision=tokenizer.revision,
            template=self.inputs.template,
            format_name=self.inputs.info.format,
            max_length=self.inputs.max_length,
            with_spans=any(grouper_class(name).needs_spans for name in self.groupers),
            repeat_parts=plan.repeat_parts,
            columns=self.inputs.info.columns,
            overlong=self.inputs.info.overlong,
        )
        self.progress.start("tokenize")
        items = (ShardRows(index, plan.pieces(index)) for index in indices)
        for item, result in self.engine.map(stage, items):
            if isinstance(result, SetAside):
                self.aside[item.index] = result.reason
                continue
            self.progress.advance(
                "tokenize", result.source_rows, result.documents, result.tokens, result.rejects, self._total()
            )
            yield item.index

    def _tokenizer_name(self) -> str:
        """Return what workers load: the directory's own copy where they may not see the driver's disk."""
        name, out = self.inputs.tokenizer.name, self.workspace.out
        unseen = self.inputs.source is None or (out.local is None and Path(name).is_dir())
        return str(out / TOKENIZER_NAME) if unseen else name

    def _total(self) -> int:
        """Return the number of source records."""
        if self.plan is not None:
            return self.plan.rows
        assert self.manifest is not None
        return sum(shard.source_rows for shard in self.manifest.shards)

    def _fit(self, fits: tuple[Grouper, ...], done: dict[int, ShardRecord]) -> bool:
        """Count the terms of all shards, sum them up, fit. Return False where a shard turned out to be damaged."""
        known = len(self.problems)
        items = []
        for index in range(self.num_shards):
            where = self._where(index, done)
            items.append(Corpus(index, where.held))
        for item, problem in outcomes(self.engine, CountTerms(self.workspace, fits), items):
            if problem is not None:
                self._damaged(item.index, problem)
                done.pop(item.index, None)
        if len(self.problems) > known:
            return False
        if self.num_shards > BLOCK_SHARDS:
            summer = SumBlocks(self.workspace, tuple(grouper.name for grouper in fits), self.num_shards)
            for _ in outcomes(self.engine, summer, range(-(-self.num_shards // BLOCK_SHARDS))):
                pass
        for _ in outcomes(self.engine, Fit(self.workspace, self.num_shards), fits):
            pass
        return True

    # The end

    def _refuse_gaps(self) -> None:
        """Raise a `UserError` that names the shards that were given up."""
        if not self.aside:
            return
        listed = "\n".join(f"  - {shard_name(index)}: {reason}" for index, reason in sorted(self.aside.items()))
        raise UserError(
            f"{self.workspace.out}: {len(self.aside)} shard(s) were set aside, the others are kept:\n{listed}\n"
            "If memory ran out, use fewer --workers or smaller --batch-tokens. Run the same command again to try these "
            "shards again."
        )

    def _report(self, name: str, shards: list[ShardInfo]) -> dict[str, Any] | None:
        """Return what a grouper says of its counters; None where none of them changed."""
        held: list[Any] = [None]
        if self.manifest is not None and name in {grouper.name for grouper in self.manifest.groupers}:
            held = [shard.counters.get(name, {}) for shard in self.manifest.shards]
        now = [shard.counters.get(name, {}) for shard in shards]
        if held == now:
            return None
        counters: Counter[str] = Counter()
        for values in now:
            counters.update(values)
        return self.build(name).report(counters)
