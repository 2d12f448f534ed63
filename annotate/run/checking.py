"""What a directory holds, compared with what its records say, on workers.

CheckShards:  a block of a manifest's shards -> those that are not whole
FindFinished: a block of shards of an unfinished run -> the records of those that are whole
"""

from collections.abc import Iterator
from dataclasses import dataclass

from annotate.run.workspace import ShardRecord, Workspace
from common.manifest import Kind, Manifest, ShardInfo
from common.shards import check_shard
from common.storage import Location

BLOCK_SHARDS = 16


def check_files(out: Location, manifest: Manifest) -> dict[str, str]:
    """Return what is wrong with the files beside the shards, by name."""
    problems = {file.file: check_shard(out, file) for file in manifest.files}
    return {name: problem for name, problem in problems.items() if problem is not None}


def blocks(num_shards: int) -> Iterator[range]:
    """Cut shard numbers into blocks."""
    for start in range(0, num_shards, BLOCK_SHARDS):
        yield range(start, min(num_shards, start + BLOCK_SHARDS))


@dataclass(frozen=True, eq=False)
class HeldBlock:
    """Some of a manifest's shards."""

    first: int
    shards: list[ShardInfo]

    @property
    def number(self) -> int:
        """Which block it is."""
        return self.first // BLOCK_SHARDS


@dataclass(frozen=True)
class CheckShards:
    """Builds the worker that compares finished shards with their manifest."""

    out: Location

    def __call__(self) -> "CheckShards":
        return self

    def run(self, item: HeldBlock) -> dict[int, str]:
        """Return what is wrong, by shard number."""
        problems = {item.first + at: check_shard(self.out, shard) for at, shard in enumerate(item.shards)}
        return {index: problem for index, problem in problems.items() if problem is not None}


def held_blocks(shards: list[ShardInfo]) -> Iterator[HeldBlock]:
    """Cut a manifest's shards into blocks."""
    for block in blocks(len(shards)):
        yield HeldBlock(block.start, shards[block.start : block.stop])


@dataclass(frozen=True)
class FindFinished:
    """Builds the worker that finds what an earlier process of the same run has finished."""

    workspace: Workspace
    kinds: dict[str, Kind]  # columns that are wanted; a shard with others is of no use

    def __call__(self) -> "FindFinished":
        return self

    def run(self, block: range) -> dict[int, ShardRecord]:
        """Return the records of whole shards, by number, without their rejects."""
        found = {}
        for index in block:
            record = ShardRecord.load(self.workspace.record(index))
            if record is None or not set(record.columns) <= set(self.kinds):
                continue
            if check_shard(self.workspace.out, record.shard) is None:
                found[index] = record.without_rejects()
        return found
