"""What the repetitions of a point say of it: mean, standard deviation and interval over its seeds.

What enters: one value a seed. What leaves: a `Summary`. Next: `differences.py` compares two points, pair by pair.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95


@dataclass(frozen=True)
class Summary:
    """A point's values in one column; what one seed cannot give is None, and so is everything where a value is NaN."""

    num_seeds: int
    mean: float | None
    sd: float | None  # with n − 1
    low: float | None  # the interval of the mean by Student's t over seeds: for another seed, not for other items
    high: float | None
    num_non_finite: int  # seeds with NaN or an infinite value: a mean over the others would hide them


def summarize(values: Sequence[float], level: float = LEVEL) -> Summary:
    """Return mean, standard deviation and the interval of the mean over seeds."""
    array = np.asarray(values, dtype=np.float64)
    bad = int((~np.isfinite(array)).sum())
    if bad or not len(array):
        return Summary(len(array), None, None, None, None, bad)
    mean = float(array.mean())
    if len(array) == 1:
        return Summary(1, mean, None, None, None, 0)
    sd = float(array.std(ddof=1))
    if sd == 0.0:
        return Summary(len(array), mean, sd, mean, mean, 0)
    low, high = stats.t.interval(level, len(array) - 1, loc=mean, scale=stats.sem(array))
    return Summary(len(array), mean, sd, float(low), float(high), 0)
