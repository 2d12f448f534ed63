"""Draws over items: which items there are by chance (bootstrap), and which of two labels each got (sign flips).

What enters: rows of numbers, one an item set's unit (an item, or the items that belong together). What leaves: `draws`
sums a row. All rows of a set are drawn with the same units, so the cost is one matrix product a set. Next:
`differences.py`.

The generator's seed is made from the set's name and size: a set's draws do not depend on what else is compared.
"""

import zlib
from collections.abc import Iterator
from functools import cache

import numpy as np

CHUNK_NUMBERS = 1 << 22  # random numbers at a time


def bootstrap_sums(rows: np.ndarray, name: str, draws: int, seed: int) -> np.ndarray:
    """Return (rows, draws) float64: each row's sum over units drawn with replacement, as many as there are.

    Equals `[row[rng.integers(n, size=n)].sum() for each draw]`, the same units for all rows.
    """
    units = rows.shape[1]
    sums = np.empty((draws, len(rows)))
    rng = _generator(name, units, seed, 0)
    for start, stop in _chunks(draws, units):
        drawn = rng.integers(units, size=(stop - start, units), dtype=np.int32)
        drawn += np.arange(stop - start, dtype=np.int32)[:, None] * units
        counts = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(stop - start, units)
        sums[start:stop] = counts.astype(np.float64) @ rows.T
    return sums.T


def flipped_sums(rows: np.ndarray, name: str, draws: int, seed: int) -> np.ndarray:
    """Return (rows, draws) float64: each row's sum with the sign of every unit drawn, the same signs for all rows.

    A difference changes its sign when the two labels of its unit are exchanged: sums under the hypothesis that they
    mean nothing.
    """
    units = rows.shape[1]
    sums = np.empty((draws, len(rows)))
    rng = _generator(name, units, seed, 1)
    for start, stop in _chunks(draws, units):
        signs = rng.integers(2, size=(stop - start, units), dtype=np.int8) * 2.0 - 1.0
        sums[start:stop] = signs @ rows.T
    return sums.T


@cache
def shuffled_student(num_seeds: int, draws: int, seed: int) -> np.ndarray:
    """Return `draws` equally likely values of Student's t with num_seeds − 1 degrees of freedom, in a random order."""
    from scipy import stats

    rng = _generator("seeds", num_seeds, seed, 2)
    return rng.permutation(stats.t.ppf((np.arange(draws) + 0.5) / draws, num_seeds - 1))


def _generator(name: str, units: int, seed: int, kind: int) -> np.random.Generator:
    return np.random.default_rng([seed, kind, units, zlib.crc32(name.encode())])


def _chunks(draws: int, units: int) -> Iterator[tuple[int, int]]:
    size = max(1, CHUNK_NUMBERS // max(units, 1))
    for start in range(0, draws, size):
        yield start, min(start + size, draws)
