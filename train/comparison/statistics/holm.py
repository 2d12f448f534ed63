"""Holm's correction: with many comparisons in one table, some are small by chance.

What enters: the p-values of a table. What leaves: corrected ones, in the same order: the chance that any of the
comparisons called significant at a level is so by chance is at most that level, whatever depends on what
(Holm 1979). scipy has no function for it (`false_discovery_control` controls another rate).
"""

from collections.abc import Sequence

import numpy as np


def holm(p_values: Sequence[float]) -> list[float]:
    """Return max over k <= j of min(1, (m − k + 1) p_(k)) for the j-th smallest of m p-values."""
    p = np.asarray(p_values, dtype=np.float64)
    if not len(p):
        return []
    order = np.argsort(p, kind="stable")
    stepped = np.minimum(1.0, p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.maximum.accumulate(stepped)
    return corrected.tolist()
