"""The work of one run, stage after stage, on any engine.

What enters: what a directory is to hold, and what it holds (`annotate.run.ledger`). What leaves: finished shards, then
the manifest. The driver sees shard numbers and counts; the files of the work directory carry everything else from
stage to stage.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console

from annotate.groupers import grouper_class
from annotate.groupers.base import Grouper
from annotate.run.appending import parts_after
from annotate.run.checking import CheckShards, FindFinished, blocks, check_files, held_blocks
from annotate.run.completion import Completion
from annotate.run.engines.base import Engine, SetAside, outcomes
from annotate.run.fitting import BLOCK_SHARDS, Corpus, CountTerms, Fit, SumBlocks
from annotate.run.inputs import Inputs
from annotate.run.ledger import Ledger
from annotate.run.planning import SourcePlan, plan_source
from annotate.run.progress import RunProgress
from annotate.run.repeats import HashHeld
from annotate.run.scoring import Damaged, Score
from annotate.run.tokenizing import ShardRows, Tokenize
from annotate.run.workspace import Workspace
from common.manifest import REJECTS_NAME, TOKENIZER_NAME, GrouperInfo, Manifest, ShardInfo, SourcePart
from common.storage import Location


@dataclass(frozen=True)
class Outcome:
    """What a job leaves."""

    manifest: Manifest
    already_complete: bool
    shards_made: int
    tokens_made: int


@dataclass
class Job:
    """What is to be done in one directory."""

    workspace: Workspace
    inputs: Inputs
    engine: Engine
    console: Console
    ledger: Ledger
    build: Callable[[str], Grouper]  # returns a grouper by name
    plan: SourcePlan | None = None
    shards_made: int = 0
    tokens_made: int = 0
    progress: RunProgress = field(init=False)  # while `do` lasts

    def is_complete(self) -> bool:
        """Look at what a complete directory holds; tell whether nothing is to be done."""
        ledger, out = self.ledger, self.workspace.out
        if ledger.manifest is None:
            return False
        ledger.note_files(check_files(out, ledger.manifest))
        for problem in ledger.damaged_files.values():
            self._note(f"{problem} It is made again.")
        if set(ledger.groupers) != ledger.held_groupers or ledger.task.changes:
            return False  # the stages check the shards, which they read anyway
        for _, problems in outcomes(self.engine, CheckShards(out), held_blocks(ledger.held)):
            for index, problem in problems.items():
                self._damaged(index, problem)
        return not ledger.problems and not ledger.damaged_files

    def do(self, infos: dict[str, GrouperInfo], before_the_end: Callable[[], object]) -> Outcome:
        """Do everything that is left, and complete the directory.

        Args:
            infos: the groupers as the manifest will name them, still without their reports.
            before_the_end: called when all shards are there and the manifest is not.

        Raises:
            UserError: shards were given up, or cannot be made without the source, or no document is left.
        """
        ledger = self.ledger
        with RunProgress(self.console) as self.progress:
            self.engine.tell = self.progress.note
            self._find_finished()
            known = -1
            while known < len(ledger.problems):  # finished shards that turn out to be damaged are made again
                known = len(ledger.problems)
                if ledger.needs_source():
                    self._plan_source()
                self._make()
        lost = ledger.elsewhere()
        if lost and not self._stays_as_it_was():
            ledger.refuse_without_source()
        shards = ledger.shards(self.num_shards)
        before_the_end()
        reports = {name: self._report(name, shards) for name in infos}
        whole = REJECTS_NAME not in ledger.damaged_files
        completion = Completion(self.workspace, self.inputs, self.engine, ledger.manifest, whole)
        manifest = completion.complete(shards, set(ledger.done), infos, reports, self._parts())
        if lost:
            ledger.refuse_without_source()
        return Outcome(manifest, False, self.shards_made, self.tokens_made)

    def _stays_as_it_was(self) -> bool:
        """Tell whether this run only repairs shards: those that it made can take their places before others do."""
        ledger = self.ledger
        return set(ledger.groupers) == ledger.held_groupers and not ledger.task.changes and not ledger.damaged_files

    def _parts(self) -> list[SourcePart]:
        """Return the sources of the directory as it will be."""
        manifest, task = self.ledger.manifest, self.ledger.task
        if manifest is not None:
            return parts_after(manifest, task, self.inputs, self.plan.rows_per_shard if self.plan else 0)
        assert self.plan is not None
        return [SourcePart(self.inputs.info, 0, self.plan.rows_per_shard)]

    def _find_finished(self) -> None:
        """Take note of the shards that an earlier process of this run has finished."""
        numbers = _numbers(self.workspace.work / "records")
        finder = FindFinished(self.workspace, self.ledger.kinds)
        for _, found in outcomes(self.engine, finder, blocks(max(numbers, default=-1) + 1)):
            self.ledger.done |= found
        if not any(grouper_class(name).needs_spans for name in self.ledger.groupers):
            self.ledger.tokenized = set(_numbers(self.workspace.work / "tokens"))

    @property
    def num_shards(self) -> int:
        """Shards of the directory as it will be."""
        held = len(self.ledger.held)
        if self.ledger.manifest is not None and not self.ledger.task.appends:
            return held
        assert self.plan is not None
        return held + self.plan.num_shards

    def _plan_source(self) -> None:
        """Plan the source, unless that was done.

        Raises:
            UserError: no source was given.
        """
        inputs, work, task = self.inputs, self.workspace.source, self.ledger.task
        if self.plan is not None:
            return
        if inputs.source is None or (task.appends and self.ledger.elsewhere()):
            self._refuse()
        assert inputs.source is not None
        place = work / f"plan-{inputs.info.content_hash[:16]}-{task.first_shard:05d}.json"
        with suppress(FileNotFoundError):
            self.plan = SourcePlan.load(place)
            return
        work.delete_tree()
        self.progress.start("plan")
        ledger = self.ledger
        before = [ledger.done[i].shard if i in ledger.done else ledger.held[i] for i in range(task.first_shard)]
        for _, problems in outcomes(self.engine, HashHeld(self.workspace), held_blocks(before)):
            for index, problem in problems.items():
                self._damaged(index, problem)
        if any(index < task.first_shard for index in ledger.elsewhere()):
            self._refuse()  # the documents' ids count the records before
        self.plan = plan_source(inputs.source, self.engine, work, inputs.info.limit, inputs.rows_per_shard, before)
        self.plan.save(place)

    def _refuse(self) -> None:
        """Raise a `UserError`: another source is needed first. Nothing is left that would be in its run's way."""
        if not self.ledger.done:
            self.workspace.work.delete_tree()
        self.ledger.refuse_without_source()

    def _damaged(self, index: int, problem: str) -> None:
        self._note(f"{problem} It is made again.")
        self.ledger.note_damage(index, problem)

    def _note(self, sentence: str) -> None:
        self.console.print(sentence, highlight=False)

    # The stages

    def _make(self) -> None:
        """Run the stages over the shards that need them; those that turn out to be damaged are for the next time."""
        ledger = self.ledger
        source = ledger.from_source(self.num_shards)
        fits = tuple(self.build(name) for name in ledger.unfitted())
        groupers = tuple(self.build(name) for name in ledger.lacking(bool(source)))
        uses_model = any(grouper.uses_model for grouper in groupers)
        if self.inputs.source is not None and any(grouper.needs_spans for grouper in groupers):
            source = ledger.respan(self.num_shards)
            if source:
                self._plan_source()
        # Tokens made again for the spans have documents that a grouper has rejected: the shards are counted instead.
        counted = set() if ledger.respanned else set(source)
        tokenized = self._tokenize(source, fits if counted else ()) if source else iter(())
        if fits or not (uses_model and self.engine.device == "cuda"):
            # Fits count the whole corpus; and on CPUs both stages want the same cores. A GPU does not wait.
            tokenized = iter(sorted(tokenized))
        if fits and (ledger.aside or ledger.elsewhere() or not self._fit(fits, counted)):
            return  # what is fitted needs every shard
        expected = set(source) | ledger.elsewhere()
        held = (i for i in range(self.num_shards) if i not in expected and not ledger.is_done(i))
        self.progress.start("score")
        tokenizer = self._tokenizer_name(), self.inputs.tokenizer.revision
        stage = Score(self.workspace, ledger.kinds, groupers, tokenizer)
        items = map(ledger.where, chain(held, tokenized))
        for item, result in self.engine.map(stage, items, uses_model=uses_model):
            if isinstance(result, SetAside):
                ledger.aside[item.index] = result.reason
            elif isinstance(result, Damaged):
                self._damaged(item.index, result.problem)
            else:
                ledger.done[item.index] = result
                shard = result.shard
                self.shards_made += 1
                self.tokens_made += shard.tokens
                self.progress.advance("score", shard.source_rows, shard.rows, shard.tokens, 0, self._total())

    def _tokenize(self, indices: list[int], fits: tuple[Grouper, ...]) -> Iterator[int]:
        """Tokenize shards from the source, and count their terms; yield the numbers of those that are."""
        assert self.plan is not None
        plan, tokenizer = self.plan, self.inputs.tokenizer
        stage = Tokenize(
            workspace=self.workspace,
            tokenizer=self._tokenizer_name(),
            revision=tokenizer.revision,
            template=self.inputs.template,
            format_name=self.inputs.info.format,
            max_length=self.inputs.max_length,
            with_spans=any(grouper_class(name).needs_spans for name in self.ledger.groupers),
            repeat_parts=plan.repeat_parts,
            columns=self.inputs.info.columns,
            overlong=self.inputs.info.overlong,
            first_row=self.ledger.task.first_row,
            fits=fits,
        )
        self.progress.start("tokenize")
        items = (ShardRows(index, plan.pieces(index - self.ledger.task.first_shard)) for index in indices)
        for item, result in self.engine.map(stage, items):
            if isinstance(result, SetAside):
                self.ledger.aside[item.index] = result.reason
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
        appended = self.plan.rows if self.plan is not None else 0
        held = sum(shard.source_rows for shard in self.ledger.held)
        if self.ledger.manifest is None or (self.ledger.task.appends and not self.ledger.task.refit):
            return appended
        return held + (appended if self.ledger.task.appends else 0)

    def _fit(self, fits: tuple[Grouper, ...], counted: set[int]) -> bool:
        """Count the terms of all other shards, sum up, fit. Return False where a shard turned out to be damaged."""
        whole = True
        left = (index for index in range(self.num_shards) if index not in counted)
        items = (Corpus(index, self.ledger.where(index).held) for index in left)
        for item, problem in outcomes(self.engine, CountTerms(self.workspace, fits), items):
            if problem is not None:
                self._damaged(item.index, problem)
                whole = False
        if not whole:
            return False
        extents = {grouper.name: self.ledger.fitted_shards(grouper.name) or self.num_shards for grouper in fits}
        summed = [name for name, extent in extents.items() if extent > BLOCK_SHARDS]
        sums = ((name, block) for name in summed for block in range(-(-extents[name] // BLOCK_SHARDS)))
        for _ in outcomes(self.engine, SumBlocks(self.workspace, extents), sums):
            pass
        for _ in outcomes(self.engine, Fit(self.workspace, extents), fits):
            pass
        return True

    def _report(self, name: str, shards: list[ShardInfo]) -> dict[str, Any] | None:
        """Return what a grouper says of its counters; None where none of them changed."""
        now = [shard.counters.get(name, {}) for shard in shards]
        if name in self.ledger.held_groupers and now == [shard.counters.get(name, {}) for shard in self.ledger.held]:
            return None
        counters: Counter[str] = Counter()
        for values in now:
            counters.update(values)
        return self.build(name).report(counters)


def _numbers(folder: Location) -> list[int]:
    """Return the numbers of the shards that have a file in a folder of the work directory."""
    return [int(name[5:].partition(".")[0]) for name in folder.names() if name.startswith("part-")]
