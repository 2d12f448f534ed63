"""The same documents in the same optimizer step, however many processes share it.

What enters: a data set and the sampler that orders it. What leaves: both, made to fill whole rounds of batches over all
ranks. Next: the data loader deals these batches out, one to each rank in turn, so optimizer step s holds the documents
of positions [s * n, (s + 1) * n) of the order, n being batch x accumulation x ranks, in whatever way n is made up.

Where the last round is incomplete, accelerate's loader repeats the first documents of the epoch so that every rank has
as many batches as the others. Repeated documents would be trained on twice an epoch and would weigh in the last step's
means. Here the gaps are filled with rows of which no token is supervised: every rank runs as many forward passes, and
the step is that of one process.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch.utils.data import Dataset, RandomSampler, Sampler, SequentialSampler

FILLER = -1  # the index that stands for a row without supervised tokens
FILLER_LENGTH = 2  # tokens: the shortest row in which one is predicted, so that no batch is empty


class FilledSampler(Sampler[int]):
    """A sampler's own order, then `FILLER` until the length is a multiple of `multiple`."""

    def __init__(self, base: Sampler[int], multiple: int, epoch: Callable[[], float]):
        """Wrap `base`, which has a length; `epoch` says how many epochs have been begun or done.

        The epoch is asked for, not waited for: a loader that skips batches, as after a resume, hides the sampler behind
        three wrappers, and accelerate's `set_epoch` looks behind two.
        """
        self.base = base
        self.num_fillers = -len(base) % multiple
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of indices, fillers included."""
        return len(self.base) + self.num_fillers

    def __iter__(self) -> Iterator[int]:
        """Yield the indices of one epoch."""
        if hasattr(self.base, "set_epoch"):
            self.base.set_epoch(int(self.epoch()))
        yield from self.base
        yield from [FILLER] * self.num_fillers


def filled_order(
    order: Sampler[int] | None, rows: Any, multiple: int, seed: int, epoch: Callable[[], float]
) -> Callable[[Any], Sampler[int]]:
    """Return what makes the sampler of a `FilledDataset` over `rows`: `order` (None: as they come), then fillers.

    A random order is one of its own for each epoch, the same that accelerate draws from `seed` for one process.
    """
    if isinstance(order, RandomSampler):
        from accelerate.data_loader import SeedableRandomSampler

        order = SeedableRandomSampler(rows, data_seed=seed)
    return lambda _: FilledSampler(order or SequentialSampler(rows), multiple, epoch)


class FilledDataset(Dataset):
    """A data set that also answers to `FILLER`."""

    def __init__(self, base: Any):
        """Wrap `base`, a `datasets.Dataset` with at least one row."""
        self.base = base
        row = base[0]
        self.filler = {name: np.zeros(FILLER_LENGTH, dtype=np.asarray(value).dtype) for name, value in row.items()}
        if "seq_lengths" in row:
            self.filler["seq_lengths"] = np.array([FILLER_LENGTH])

    def __len__(self) -> int:
        """Return the number of real rows."""
        return len(self.base)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one row."""
        return self.filler if index == FILLER else self.base[index]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        """Return the rows of one batch, read at once."""
        real = [index for index in indices if index != FILLER]
        rows = self.base.__getitems__(real) if real else []
        return rows + [self.filler] * (len(indices) - len(real))  # fillers are last in every batch
