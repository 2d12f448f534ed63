"""The reduction: what groupers fit on the whole corpus, summed up on workers. The driver sees no counts.

    CountTerms: the tokens of a shard -> .work/counts/<grouper>/part-k.npz
    SumBlocks:  those of BLOCK_SHARDS shards -> .work/counts/<grouper>/block-b.npz
    Fit:        those of all blocks -> state/, by the grouper's own `fit` and `save`

What enters: tokens, from a file of the first stage or from a finished shard. What leaves: the fitted state.
"""

import tempfile
from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from annotate.groupers.base import Grouper
from annotate.run.scanning import read_arrays, write_arrays
from annotate.run.tables import COUNTED, from_table, read_tokens
from annotate.run.workspace import Workspace
from annotate.tokens.batch import TokenBatch
from common.errors import UserError
from common.manifest import ShardInfo
from common.shards import read_table
from common.storage import Location, StorageError

BLOCK_SHARDS = 256


@dataclass(frozen=True, eq=False)
class Corpus:
    """Where the tokens of a shard are."""

    index: int
    held: ShardInfo | None  # the shard as it is; None where its tokens are in a file of the first stage


@dataclass(frozen=True)
class CountTerms:
    """Builds the worker that counts what a shard adds to the fits."""

    workspace: Workspace
    groupers: tuple[Grouper, ...]

    def __call__(self) -> "CountTerms":
        return self

    def run(self, item: Corpus) -> str | None:
        """Count one shard, unless that was done. Return what is wrong with a finished shard that is not whole."""
        missing = [g for g in self.groupers if not self.workspace.counts(g.name, item.index).is_file()]
        if not missing:
            return None
        if item.held is None:
            batch, _ = read_tokens(self.workspace.tokens(item.index), COUNTED)
        else:
            try:
                batch = from_table(read_table(self.workspace.out / item.held.file, COUNTED, item.held.sha256))
            except StorageError:
                raise  # the shard may be whole
            except UserError as error:
                return str(error)
        self.count(item.index, batch, missing)
        return None

    def count(self, index: int, batch: TokenBatch, groupers: Iterable[Grouper]) -> None:
        """Write what a shard's batch adds."""
        for grouper in groupers:
            write_counts(self.workspace.counts(grouper.name, index), grouper.count(batch))


def write_counts(place: Location, counts: dict[str, np.ndarray]) -> None:
    """Write vectors without their zeros: a shard holds few of a vocabulary's terms."""
    stored: dict[str, np.ndarray] = {}
    for name, values in counts.items():
        at = np.flatnonzero(values)
        stored |= {f"{name}.at": at.astype(np.uint32), f"{name}.values": values[at]}
        stored[f"{name}.size"] = np.array(values.size)
    write_arrays(place, **stored)


def add_counts(total: dict[str, np.ndarray], place: Location) -> None:
    """Add what `write_counts` wrote."""
    stored = read_arrays(place)
    for name in {key.rpartition(".")[0] for key in stored}:
        add(total, name, int(stored[f"{name}.size"]), stored[f"{name}.at"], stored[f"{name}.values"])


def add(total: dict[str, np.ndarray], name: str, size: int, at: np.ndarray | slice, values: np.ndarray) -> None:
    """Add a vector to the sum of this name; the longer of the two decides how long the sum is.

    Args:
        size: of the vector.
        at, values: its values at these places; all others are 0.
    """
    held = total.get(name, np.zeros(0, dtype=values.dtype))
    total[name] = held = np.pad(held, (0, size - held.size)) if held.size < size else held
    held[at] += values


@dataclass(frozen=True)
class SumBlocks:
    """Builds the worker that sums the counts of a block of shards."""

    workspace: Workspace
    extents: dict[str, int]  # by grouper: how many of the first shards it is fitted on

    def __call__(self) -> "SumBlocks":
        return self

    def run(self, item: tuple[str, int]) -> None:
        """Sum one block for one grouper."""
        name, block = item
        total: dict[str, np.ndarray] = {}
        for index in range(block * BLOCK_SHARDS, min(self.extents[name], (block + 1) * BLOCK_SHARDS)):
            add_counts(total, self.workspace.counts(name, index))
        write_counts(self.workspace.sums(name, block), total)


@dataclass(frozen=True)
class Fit:
    """Builds the worker that fits."""

    workspace: Workspace
    extents: dict[str, int]

    def __call__(self) -> "Fit":
        return self

    def run(self, grouper: Grouper) -> None:
        """Fit one grouper on its corpus, and write its state."""
        total: dict[str, np.ndarray] = {}
        extent = self.extents[grouper.name]
        one_block = extent <= BLOCK_SHARDS
        for number in range(extent if one_block else -(-extent // BLOCK_SHARDS)):
            place = self.workspace.counts if one_block else self.workspace.sums
            add_counts(total, place(grouper.name, number))
        fitted = copy(grouper)
        fitted.fit(total)
        with tempfile.TemporaryDirectory(prefix="sft-go-") as folder:
            fitted.save(Path(folder))
            for path in sorted(Path(folder).iterdir()):
                (self.workspace.state / path.name).write_bytes(path.read_bytes())


def load_state(grouper: Grouper, *places: Location) -> None:
    """Let a grouper read its state from the first of these directories that has it."""
    place = next((place for place in places if (place / f"{grouper.name}.parquet").is_file()), places[-1])
    if place.local is not None:
        grouper.load(place.local)
        return
    with tempfile.TemporaryDirectory(prefix="sft-go-") as folder:
        for name in place.names():
            if name.split(".")[0] == grouper.name:
                (Path(folder) / name).write_bytes((place / name).read_bytes())
        grouper.load(Path(folder))
