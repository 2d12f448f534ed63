"""How sequences of different lengths share a model's forward pass, and get the same scores in any company.

What enters: the lengths of documents or chunks. What leaves: the width that each is padded to, and batches under a
token budget. Next: `reference_loss` and `compressor.model` feed them.

On a CPU a sequence's float32 scores are the same bits whatever shares its batch, in a shard or in a request to the
service: a row of a matrix product does not depend on the other rows, and attention does not depend on the padding as
long as its sums are split alike. Measured with torch 2.13 and MKL: that is so for widths that are multiples of 16, of
which those above 192 must be equal; and for products of 12 rows and more. On a GPU the kernels change with the number
of rows, so there scores move by a rounding step or two.
"""

import numpy as np

STEP = {"cpu": 16, "cuda": 8}  # widths are multiples of it; attention kernels for GPUs want multiples of 8
MIXED_WIDTH = {"cpu": 192, "cuda": np.inf}  # sequences up to this width share batches with narrower ones
MIN_ROWS = 16  # of a matrix product


def padded_widths(lengths: np.ndarray, device: str, most: int | None = None) -> np.ndarray:
    """Return the width that each sequence is padded to at least, int64, from its length alone; at most `most`.

    Args:
        lengths: int64 [any].
        device: "cpu" or "cuda".
        most: positions of the model; no sequence is longer.
    """
    widths = -(-lengths // STEP[device]) * STEP[device]
    return widths if most is None else np.minimum(widths, most)


def plan_batches(
    widths: np.ndarray, batch_tokens: int, device: str, max_padding: float = np.inf, free_padding: int = 0
) -> list[np.ndarray]:
    """Return index arrays (int64) that cover every sequence once, widest first.

    A batch takes the next sequences as long as rows · widest stays within `batch_tokens`, and within (1 +
    `max_padding`) · the sum of its widths or that sum + `free_padding`; its first sequence is always taken. Widest
    first, so that a budget which is too large for the device fails at once, not hours later.
    """
    order = np.argsort(-widths, kind="stable")
    falling = widths[order]
    sums = np.concatenate([[0], np.cumsum(falling)])
    batches, start = [], 0
    while start < len(order):
        widest = int(falling[start])
        stop = len(order)
        if widest > MIXED_WIDTH[device]:
            stop = int(np.searchsorted(-falling, -widest, side="right"))
        rows = np.arange(1, min(max(1, batch_tokens // max(1, widest)), stop - start) + 1)
        total = sums[start + rows] - sums[start]
        # Widths fall, so padding and its share only grow with the rows.
        fits = rows * widest <= np.maximum((1 + max_padding) * total, total + free_padding)
        batches.append(order[start : start + int(fits.sum())])
        start += len(batches[-1])
    return batches
