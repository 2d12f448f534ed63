"""Where the files of a run lie in its output directory, and what is known of each shard.

    <out>/.work/plan.json            what the unfinished run makes: settings and groupers
    <out>/.work/source/              the source's ranges: marks, hashes, repeated records (`annotate.run.scanning`)
    <out>/.work/tokens/part-k.arrow  tokenized documents of shards that are to be scored
    <out>/.work/counts/<grouper>/    what each shard adds to a fit
    <out>/.work/records/part-k.json  what is known of each finished shard, and its rejects
    <out>/.work/next/                files that will take the place of those of a complete directory
    <out>/part-k.parquet             finished shards of a directory that is not complete yet

A complete directory is never touched before everything that replaces it is there (`annotate.run.publishing`). Every
file appears whole, under a name that depends on the shard alone, so doing a shard twice is harmless.
"""

import dataclasses
from dataclasses import dataclass, field

from annotate.records.readers import Reject
from common.manifest import STATE_NAME, WORK_NAME, Kind, ShardInfo
from common.shards import shard_name
from common.storage import Location

RECORDS = "records"  # among a shard's counters: what became of its records, `annotate.run.tokenizing`


def has_rejects(shard: ShardInfo) -> bool:
    """Tell whether a record of a shard, or a piece of one, became no document."""
    return shard.rows - shard.counters.get(RECORDS, {}).get("further_pieces", 0) < shard.source_rows


@dataclass(frozen=True)
class ShardRecord:
    """What is known of a finished shard before the manifest is written. `shard.file` is relative to the directory."""

    shard: ShardInfo
    columns: dict[str, Kind]
    rejects: list[Reject] = field(default_factory=list)
    from_source: bool = True  # its rejects are all there are; else those that were added to the manifest's

    def save(self, place: Location) -> None:
        """Write the record."""
        place.write_json(dataclasses.asdict(self))

    @classmethod
    def load(cls, place: Location) -> "ShardRecord | None":
        """Read a record; None where there is none."""
        try:
            raw = place.read_json()
        except FileNotFoundError:
            return None
        rejects = [Reject(**reject) for reject in raw["rejects"]]
        return cls(ShardInfo(**raw["shard"]), raw["columns"], rejects, raw["from_source"])

    def without_rejects(self) -> "ShardRecord":
        """Return what the driver keeps."""
        return dataclasses.replace(self, rejects=[])


@dataclass(frozen=True)
class Workspace:
    """The names of a run's files. Travels to workers.

    Attributes:
        out: the directory.
        beside: the directory is complete, so new files go to `.work/next/`.
    """

    out: Location
    beside: bool

    @property
    def work(self) -> Location:
        """What an unfinished run needs to go on."""
        return self.out / WORK_NAME

    @property
    def plan(self) -> Location:
        """What the unfinished run makes."""
        return self.work / "plan.json"

    @property
    def source(self) -> Location:
        """What the run knows of its source."""
        return self.work / "source"

    @property
    def next(self) -> Location:
        """Where files wait that replace others."""
        return self.work / "next"

    @property
    def target(self) -> Location:
        """The directory that finished files are written to."""
        return self.next if self.beside else self.out

    @property
    def state(self) -> Location:
        """Where this run writes what groupers fit."""
        return self.target / STATE_NAME

    @property
    def held_state(self) -> Location:
        """Where a complete directory has what its groupers fitted."""
        return self.out / STATE_NAME

    def forget(self) -> None:
        """Delete what an unfinished run has made; the unpacked source of the one that begins stays."""
        self.plan.delete()
        for name in ("source", "tokens", "counts", "records", "next"):
            (self.work / name).delete_tree()

    def shard_file(self, index: int) -> str:
        """Return where a finished shard is written, relative to the directory."""
        name = shard_name(index)
        return f"{WORK_NAME}/next/{name}" if self.beside else name

    def tokens(self, index: int) -> Location:
        """Return a shard's tokenized documents."""
        return self.work / "tokens" / f"part-{index:05d}.arrow"

    def record(self, index: int) -> Location:
        """Return a shard's record."""
        return self.work / "records" / f"part-{index:05d}.json"

    def counts(self, grouper: str, index: int) -> Location:
        """Return what a shard adds to a grouper's fit."""
        return self.work / "counts" / grouper / f"part-{index:05d}.npz"

    def sums(self, grouper: str, block: int) -> Location:
        """Return the sum of the counts of a block of shards."""
        return self.work / "counts" / grouper / f"block-{block:05d}.npz"
