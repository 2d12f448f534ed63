"""The first stage: the records of a shard -> `.work/tokens/part-k.arrow`, and what they add to the fits.

What enters: where a shard's records lie. What leaves: their tokens in a file, their terms counted, and
for the driver a few numbers. Next: `annotate.run.fitting` fits, `annotate.run.scoring` scores.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from annotate.groupers.base import Grouper
from annotate.records.columns import rename
from annotate.records.conversations import DocumentError, to_conversation
from annotate.records.ranges import Piece, read_range
from annotate.records.readers import Reject, Row
from annotate.records.sources import document_id, record_hash
from annotate.run.fitting import Corpus, CountTerms
from annotate.run.repeats import SourceNotes
from annotate.run.tables import join, read_facts, write_tokens
from annotate.run.workspace import Workspace
from annotate.tokens.batch import TokenBatch
from annotate.tokens.shortening import shorten
from annotate.tokens.splitting import split_document
from annotate.tokens.target import load_target
from annotate.tokens.templates import Segment, make_template

# Texts that the tokenizer gets at once: its encodings take about a hundred times as much as the tokens that are kept.
BATCH_CHARACTERS = 4 << 20


@dataclass(frozen=True, eq=False)
class ShardRows:
    """The records of one shard."""

    index: int
    pieces: list[Piece]


@dataclass(frozen=True)
class Tokenized:
    """What the driver knows of a tokenized shard."""

    documents: int
    tokens: int
    truncated: int
    source_rows: int
    rejects: int


@dataclass(frozen=True)
class Tokenize:
    """Builds `Tokenizer` in a worker process."""

    workspace: Workspace
    tokenizer: str
    revision: str | None
    template: str
    format_name: str
    max_length: int
    with_spans: bool
    repeat_parts: int
    columns: dict[str, str] = field(default_factory=dict)  # under other names
    overlong: str = "truncate"
    first_row: int = 0  # of these records in the directory: after those that it holds already
    fits: tuple[Grouper, ...] = ()  # groupers that are fitted on the corpus: their terms are counted here

    def __call__(self) -> "Tokenizer":
        return Tokenizer(self)


class Tokenizer:
    """Turns records into tokens."""

    def __init__(self, job: Tokenize):
        self.job = job
        self.target = load_target(job.tokenizer, job.revision)
        self.template = make_template(job.template, self.target.tokenizer)
        self.notes = SourceNotes(job.workspace.source, job.repeat_parts)
        self.counter = CountTerms(job.workspace, job.fits)

    def run(self, shard: ShardRows) -> Tokenized:
        """Tokenize one shard and write it; a shard that is already there is only looked at."""
        place = self.job.workspace.tokens(shard.index)
        facts = read_facts(place)
        if facts is None or facts["with_spans"] < self.job.with_spans:
            batch, truncated, rejects, counters = self._tokenize(shard)
            facts = {
                "with_spans": self.job.with_spans,
                "documents": len(batch),
                "tokens": batch.num_tokens,
                "truncated": truncated,
                "source_rows": sum(piece.stop - piece.start for piece in shard.pieces),
                "rejects": [vars(reject) for reject in rejects],
                "counters": {name: count for name, count in counters.items() if count},
            }
            write_tokens(place, batch, facts)
            self.counter.count(shard.index, batch, self.job.fits)
        else:
            self.counter.run(Corpus(shard.index, None))
        return Tokenized(
            facts["documents"], facts["tokens"], facts["truncated"], facts["source_rows"], len(facts["rejects"])
        )

    def _tokenize(self, shard: ShardRows) -> tuple[TokenBatch, int, list[Reject], Counter[str]]:
        batches: list[TokenBatch] = []
        truncated = 0
        rejects: list[Reject] = []
        counters: Counter[str] = Counter()
        documents: list[list[Segment]] = []
        kept: list[tuple[str, int]] = []
        characters = 0

        def finish() -> None:
            nonlocal truncated, characters
            names, rows = [name for name, _ in kept], [row for _, row in kept]
            result = self.target.tokenize(documents, names, rows, self.job.max_length, self.job.with_spans)
            batches.append(result.batch)
            truncated += result.num_truncated
            message = f"no supervised token is left after truncation to {self.job.max_length} tokens."
            rejects.extend(Reject(row, "no_supervised_token", message) for row in result.unsupervised)
            documents.clear()
            kept.clear()
            characters = 0

        for source_row, name, record in self._records(shard.pieces):
            try:
                if record.unreadable is not None:
                    raise DocumentError("unreadable", record.unreadable)
                conversation = to_conversation(rename(record.value, self.job.columns), self.job.format_name)
                document = self.template(conversation)
            except DocumentError as error:
                rejects.append(Reject(source_row, error.reason, str(error)))
                continue
            counters["dropped_turns"] += conversation.dropped_turns
            parts = self._parts(document)
            counters["split_documents"] += len(parts) > 1
            counters["further_pieces"] += len(parts) - 1
            documents += parts
            kept += [(name if len(parts) == 1 else f"{name}.{part}", source_row) for part in range(len(parts))]
            characters += sum(len(segment.text) for part in parts for segment in part)
            if characters > BATCH_CHARACTERS:
                finish()
        if documents or not batches:
            finish()
        return join(batches), truncated, rejects, counters

    def _parts(self, document: list[Segment]) -> list[list[Segment]]:
        """Return the document, or with `--overlong split` its pieces that hold something supervised."""
        if self.job.overlong != "split":
            return [list(shorten(document, self.target, self.job.max_length))]
        # A token has one byte at least: what is short enough in bytes is so in tokens.
        size = sum(len(segment.text.encode()) for segment in document) + len(self.target.prefix)
        if size <= self.job.max_length:
            return [document]
        parts = split_document(document, self.target, self.job.max_length)
        return [part for part in parts if any(segment.supervised for segment in part)] or parts[:1]

    def _records(self, pieces: list[Piece]) -> Iterator[tuple[int, str, Row]]:
        """Yield each record with its row in the directory and its document's id."""
        for piece in pieces:
            mark, skip = self.notes.place_of(piece.part, piece.start)
            rows = islice(read_range(piece.part, mark), skip, skip + piece.stop - piece.start)
            first = piece.part.first_row + piece.start
            repeats = self.notes.repeats(piece.part.number, first, first + piece.stop - piece.start)
            for row, record in enumerate(rows, start=first):
                name = document_id(record_hash(record.value), repeats.get(row, 0))
                yield self.job.first_row + row, name, record
