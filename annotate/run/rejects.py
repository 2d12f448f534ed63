"""`rejects.jsonl`: the records that became no document, in source order. Written by one worker, line by line.

What enters: what this run rejected (`.work/records/`), and the lines of the directory as it was. What leaves: the file,
and for the driver the number of rejects by reason.
"""

import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from annotate.records.readers import Reject
from annotate.run.workspace import ShardRecord, Workspace
from common.manifest import REJECTS_NAME
from common.storage import Location


@dataclass(frozen=True)
class SourceRows:
    """The source rows of a shard, and whether this run has a record of it."""

    index: int
    first_row: int
    stop_row: int
    has_record: bool


@dataclass(frozen=True)
class WriteRejects:
    """Builds the worker that writes the file."""

    workspace: Workspace
    shards: tuple[SourceRows, ...]  # those that lack rows, in order; the others have no rejects
    held_is_whole: bool = True  # else every shard has a record of its rejects

    def __call__(self) -> "WriteRejects":
        return self

    def run(self, item: str) -> dict[str, int]:
        """Write the file; return counts by reason code, sorted."""
        reasons: Counter[str] = Counter()
        is_read = self.workspace.beside and self.held_is_whole
        before = held_rejects(self.workspace.out / REJECTS_NAME) if is_read else iter(())
        pending = next(before, None)
        with (self.workspace.target / item).writing() as path, open(path, "w", encoding="utf-8") as file:
            for shard in self.shards:
                kept: list[Reject] = []
                while pending is not None and pending.source_row < shard.stop_row:
                    if pending.source_row >= shard.first_row:
                        kept.append(pending)
                    pending = next(before, None)
                record = ShardRecord.load(self.workspace.record(shard.index)) if shard.has_record else None
                if record is not None:
                    kept = record.rejects if record.from_source else kept + record.rejects
                for reject in sorted(kept, key=lambda reject: reject.source_row):
                    file.write(reject.as_json() + "\n")
                    reasons[reject.reason] += 1
        return dict(sorted(reasons.items()))


def held_rejects(place: Location) -> Iterator[Reject]:
    """Yield the rejects of a file."""
    try:
        file = place.open()
    except FileNotFoundError:
        return
    with file, io.TextIOWrapper(file, encoding="utf-8") as text:
        for line in text:
            yield Reject(**json.loads(line))
