"""Which sequences share a forward pass, and how they lie in it: end to end in one row, or padded in a row each.

What enters: where sequences begin in a flat array, their lengths, and a token budget. What leaves: batches. Next:
`packing.py`, which feeds them to a model.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

ROWS = 32  # a packed batch is filled up to a multiple of it
STEP = 8  # padded widths are multiples of it; attention kernels for GPUs want that
# Most padding of a batch, as a share of what is not padding. On a GPU a few more rows cost less than another batch.
MAX_PADDING = {"cpu": 0.05, "cuda": 0.2}


@dataclass(frozen=True)
class Batch:
    """Sequences that share a forward pass.

    Attributes:
        sources: int64 [rows, width]: where in the flat array each input comes from; filling repeats a sequence's last.
        real: bool [rows, width]: False for filling.
        edges: where the packed sequences of the one row begin and end, int64 [sequences + 1]; None where they are
            padded, a row each.
    """

    sources: np.ndarray
    real: np.ndarray
    edges: np.ndarray | None


def plan_packed(lengths: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Return index arrays (int64) that cover every sequence once, longest first, so that what is too large fails early.

    A batch takes the next sequences as long as the sum of their lengths is within `batch_tokens`, the first always.
    """
    order = np.argsort(-lengths, kind="stable")
    ends = np.cumsum(lengths[order])
    batches, start = [], 0
    while start < len(order):
        limit = ends[start] - lengths[order[start]] + batch_tokens
        stop = max(start + 1, int(np.searchsorted(ends, limit, side="right")))
        batches.append(order[start:stop])
        start = stop
    return batches


def plan_padded(lengths: np.ndarray, batch_tokens: int, max_padding: float) -> list[np.ndarray]:
    """Return index arrays (int64) that cover every sequence once, longest first, so that what is too large fails early.

    A batch takes the next sequences as long as rows · padded width stays within `batch_tokens`, and within (1 +
    `max_padding`) · the sum of the padded widths that its sequences would have alone; the first always.
    """
    order = np.argsort(-lengths, kind="stable")
    falling = padded_width(lengths[order])
    sums = np.concatenate([[0], np.cumsum(falling)])
    batches, start = [], 0
    while start < len(order):
        widest = int(falling[start])
        rows = np.arange(1, min(max(1, batch_tokens // widest), len(order) - start) + 1)
        total = sums[start + rows] - sums[start]
        stop = start + int((rows * widest <= (1 + max_padding) * total).sum())  # the share only grows with the rows
        batches.append(order[start:stop])
        start = stop
    return batches


def padded_width(length: Any) -> Any:
    """Return a length, or an array of them, rounded up."""
    return -(-length // STEP) * STEP


def lay_end_to_end(starts: np.ndarray, lengths: np.ndarray) -> Batch:
    """Return the batch of one row; filling is one more sequence."""
    filling = -int(lengths.sum()) % ROWS
    edges = np.concatenate([[0], np.cumsum(lengths)])
    sources = np.arange(edges[-1]) + np.repeat(starts - edges[:-1], lengths)
    real = np.arange(edges[-1] + filling) < edges[-1]
    if filling:
        sources = np.concatenate([sources, np.full(filling, sources[-1])])
        edges = np.append(edges, edges[-1] + filling)
    return Batch(sources[None], real[None], edges)


def lay_in_rows(starts: np.ndarray, lengths: np.ndarray, most: int) -> Batch:
    """Return the batch of a row each, in a model that has `most` positions; a longer sequence is not cut."""
    longest = int(lengths.max())
    columns = np.arange(min(padded_width(longest), max(longest, most)))
    sources = starts[:, None] + np.minimum(columns, lengths[:, None] - 1)
    return Batch(sources, columns < lengths[:, None], None)
