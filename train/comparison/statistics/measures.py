"""A run's value in a column as a sum over items, so that items can be resampled.

What enters: numerators and denominators of items (losses and tokens of documents; right answers and 1). What leaves:
a `Measure`. Next: `differences.py` takes the difference of two measures of one seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Part:
    """What one item set adds to a value; a unit is an item, or all the items that belong together."""

    item_set: str  # measures with one name here have the same units in the same order
    contributions: np.ndarray  # (units,) float64, sum to the part's value
    influences: (
        np.ndarray
    )  # (units,) float64, sum to 0: the value's change when a unit is drawn once more (linear part)


@dataclass(frozen=True)
class Measure:
    """One run's value in one column. Without parts only the value is known, not what it is made of."""

    value: float
    parts: tuple[Part, ...] = ()


def ratio(item_set: str, numerators: np.ndarray, denominators: np.ndarray, groups: Sequence | None = None) -> Measure:
    """Return the measure Σ numerators / Σ denominators; items with one value of `groups` become one unit.

    None in `groups` is an item on its own. NaN where the denominators are all zero.
    """
    numerators, denominators = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    if groups is not None and any(group is not None for group in groups):
        names = [("item", index) if group is None else ("group", group) for index, group in enumerate(groups)]
        places = {name: place for place, name in enumerate(dict.fromkeys(names))}
        index = np.array([places[name] for name in names])
        numerators = np.bincount(index, numerators, len(places))
        denominators = np.bincount(index, denominators, len(places))
    total = denominators.sum()
    if not total:
        return Measure(float("nan"))
    value = float(numerators.sum() / total)
    contributions = numerators / total
    return Measure(value, (Part(item_set, contributions, contributions - value * denominators / total),))


def combine(weighted: Sequence[tuple[float, Measure]]) -> Measure:
    """Return Σ weight × measure; parts over one item set become one, so that its items are drawn once."""
    value = float(sum(weight * measure.value for weight, measure in weighted))
    if any(not measure.parts for _, measure in weighted):
        return Measure(value)
    sums: dict[str, Part] = {}
    for weight, measure in weighted:
        for part in measure.parts:
            added = Part(part.item_set, weight * part.contributions, weight * part.influences)
            if before := sums.get(part.item_set):
                added = Part(
                    part.item_set,
                    before.contributions + added.contributions,
                    before.influences + added.influences,
                )
            sums[part.item_set] = added
    return Measure(value, tuple(sums.values()))
