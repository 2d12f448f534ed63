"""The last stage: tokens -> a finished shard with every score column, and its record.

What enters: the tokens of a shard, from a file of the first stage; or a finished shard that lacks columns, whose text
and token ids are all that is needed. What leaves: the shard, its record, and for the driver the record without rejects.
"""

import threading
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np

from annotate.groupers.base import Grouper
from annotate.records.readers import Reject
from annotate.run.fitting import load_state
from annotate.run.tables import flat, from_table, read_tokens, to_table
from annotate.run.workspace import RECORDS, ShardRecord, Workspace
from annotate.tokens.batch import TokenBatch
from annotate.tokens.spans import with_spans
from annotate.tokens.target import load_target
from common.errors import UserError
from common.manifest import Kind, ShardInfo
from common.shards import check_shard, read_table, write_shard
from common.storage import StorageError


@dataclass(frozen=True, eq=False)
class ToScore:
    """One shard, and where its tokens are."""

    index: int
    held: ShardInfo | None = None  # the shard as it is; None where its tokens are in a file of the first stage
    kept: tuple[str, ...] = ()  # columns that are taken over from it as they are
    has_tokens: bool = False  # a held shard was tokenized from the source again, for the spans


@dataclass(frozen=True)
class Damaged:
    """What is wrong with a finished shard that was to be read."""

    problem: str


@dataclass(frozen=True)
class Score:
    """Builds `Scorer` in a worker process."""

    workspace: Workspace
    kinds: dict[str, Kind]  # the columns that a finished shard has, in order
    groupers: tuple[Grouper, ...]  # those of which a shard may lack columns
    tokenizer: tuple[str, str | None]  # name and revision, for spans of shards without their source

    def __call__(self) -> "Scorer":
        return Scorer(self)


class Scorer:
    """Turns tokens into a finished shard."""

    def __init__(self, job: Score):
        self.workspace = job.workspace
        self.groupers = job.groupers
        self.tokenizer = job.tokenizer
        self.turn = threading.Lock()
        self.kinds = job.kinds
        for grouper in self.groupers:
            if grouper.needs_fit:
                load_state(grouper, self.workspace.state, self.workspace.held_state)

    def run(self, item: ToScore) -> ShardRecord | Damaged:
        """Score one shard and write it. A shard that another worker has finished meanwhile is only looked at."""
        done = self._finished(item.index)
        if done is not None:
            return done.without_rejects()
        try:
            record = self._score_shard(item) if item.held is not None else self._score_tokens(item.index)
        except FileNotFoundError:
            done = self._finished(item.index)  # another worker was faster, and has cleared the tokens
            if done is None:
                raise
            return done.without_rejects()
        if isinstance(record, Damaged):
            return record
        record.save(self.workspace.record(item.index))
        self.workspace.tokens(item.index).delete()
        return record.without_rejects()

    def _finished(self, index: int) -> ShardRecord | None:
        """Return the record of a shard that has every column and is what its record says."""
        record = ShardRecord.load(self.workspace.record(index))
        if record is None or record.columns != self.kinds:
            return None
        return record if check_shard(self.workspace.out, record.shard) is None else None

    def _score_tokens(self, index: int) -> ShardRecord:
        """Score a tokenized shard."""
        batch, facts = read_tokens(self.workspace.tokens(index))
        rejects = [Reject(**reject) for reject in facts["rejects"]]
        counters = {RECORDS: facts["counters"]} if facts.get("counters") else {}
        return self._write(index, batch, {}, counters, rejects, True, facts["source_rows"], facts["truncated"])

    def _score_shard(self, item: ToScore) -> ShardRecord | Damaged:
        """Add columns to a finished shard."""
        held = item.held
        assert held is not None
        try:
            table = read_table(self.workspace.out / held.file, None, held.sha256)
        except StorageError:
            raise  # the shard may be whole
        except UserError as error:
            return Damaged(str(error))
        columns = {name: flat(table, name) for name in item.kept}
        before = ShardRecord.load(self.workspace.record(item.index))
        if before is not None and before.shard.sha256 == held.sha256:
            rejects, from_source = before.rejects, before.from_source
        else:
            rejects, from_source = [], False
        batch = self._with_spans(item, from_table(table))
        return self._write(
            item.index, batch, columns, held.counters, rejects, from_source, held.source_rows, held.truncated
        )

    def _with_spans(self, item: ToScore, batch: TokenBatch) -> TokenBatch:
        """Add spans to a finished shard's batch where a grouper that it lacks wants them.

        Raises:
            UserError: the source gives other tokens now, or the spans cannot be told from the shard.
        """
        if item.has_tokens:
            tokens, _ = read_tokens(self.workspace.tokens(item.index))
            tokens = tokens.select(np.flatnonzero(np.isin(tokens.source_rows, batch.source_rows)))
            if not np.array_equal(tokens.input_ids, batch.input_ids):
                raise UserError(
                    f"{self.workspace.out}: shard {item.index} holds other tokens than the source gives now. "
                    "The installed tokenizers version may differ; annotate into an empty directory."
                )
            return tokens
        if not any(g.needs_spans for g in self.groupers if not set(g.columns) <= set(item.kept)):
            return batch
        found, lost = with_spans(batch, load_target(*self.tokenizer))
        if lost:
            raise UserError(
                f"{self.workspace.out}: shard {item.index}: where the tokens of {len(lost)} documents stand in their "
                f"texts cannot be told from the shard (the first is {lost[0]}; it may have been cut). Give the source "
                "with --data."
            )
        return found

    def _write(
        self,
        index: int,
        batch: TokenBatch,
        columns: dict[str, np.ndarray],
        counters: dict[str, dict[str, float]],
        rejects: list[Reject],
        from_source: bool,
        source_rows: int,
        truncated: int,
    ) -> ShardRecord:
        counters = dict(counters)
        rejected: dict[int, Reject] = {}
        for grouper in self.groupers:
            if all(name in columns for name in grouper.columns):
                continue
            # Threads read and write shards beside the model; the model itself sees one at a time, as its memory is for.
            with self.turn if grouper.uses_model else nullcontext():
                scores = grouper.score(batch)
            counters[grouper.name] = scores.counters
            columns |= scores.columns
            for document, message in scores.rejects.items():
                row = int(batch.source_rows[document])
                rejected[document] = Reject(row, f"{grouper.name}_failed", message)
        self._check(columns, batch, rejected)
        if rejected:
            tokens = ~np.isin(batch.document_index, list(rejected))
            columns = {name: values[tokens] for name, values in columns.items()}
            batch = batch.select(np.array([i for i in range(len(batch)) if i not in rejected], dtype=np.int64))
        file = self.workspace.shard_file(index)
        info = write_shard(
            self.workspace.out / file,
            to_table(batch, columns, self.kinds),
            supervised_tokens=int(batch.supervised.sum()),
            source_rows=source_rows,
            truncated=truncated,
            counters=counters,
        )
        info = ShardInfo(**{**vars(info), "file": file})
        return ShardRecord(info, self.kinds, rejects + list(rejected.values()), from_source)

    def _check(self, columns: dict[str, np.ndarray], batch: TokenBatch, rejected: dict[int, Reject]) -> None:
        """Every token gets a defined, finite score from every grouper (DESIGN: section 4)."""
        kept = ~np.isin(batch.document_index, list(rejected)) if rejected else slice(None)
        for name in self.kinds:
            values = columns[name]
            assert values.shape == (batch.num_tokens,), f"{name}: {values.shape}"
            assert values.dtype == np.float32, f"{name}: {values.dtype}"
            assert np.isfinite(values[kept]).all(), f"{name}: a score is not finite"
