"""Differences of two points, paired by seed and item: estimate, interval, test, and what could have been seen.

What enters: `Pairs`, one a comparison: for every seed that both points have, both runs' `Measure`. What leaves: an
`Estimate` each. Next: `holm.py` corrects a table's p-values.

**The model.** The difference of seed s and item i is d = delta + a_s + b_i + e_si: what the seed does to all items,
what the item does in all seeds, and the rest. The mean over S seeds and I items varies by var(a)/S + var(b)/I +
var(e)/(S I): another seed and other items would give another one, and the interval is for both.

**The interval** is of a hierarchical bootstrap with one change. Items are drawn with replacement, all that belong
together at once, the same for both points and all seeds. Seeds are not: five values drawn with replacement give too
narrow intervals (their variance is 4/5 of what it should be, and they know nothing of its uncertainty; 86 % cover
where 95 % should). The seed level is Student's t with S − 1 degrees of freedom in its place:

    draw = mean + t · se_seeds + (mean over drawn items − mean),      the interval is the 2.5 % and 97.5 % quantile

    se_seeds² = max(0, sd(seed means)²/S − (1 − 2/S) · residual)

The residual var(e)/(S I) is in both terms and is taken out of one; not wholly, since it makes se_seeds zero by chance
where seeds matter, and few seeds cannot tell (the factor was chosen by simulation; with two seeds nothing is taken
out). Coverage at 5 seeds × 200 items is 93 to 97 % with a seed effect, 96 to 98 % without one; `tests` simulate it.
If only seeds vary this is the paired t interval, if only items vary the percentile bootstrap.

**The test.** Under the hypothesis that the two labels mean nothing, exchanging them for an item changes the sign of its
difference: signs of items are drawn. Exchanging them for a seed does the same, but five seeds have 32 sign patterns,
and the smallest two-sided p would be 1/16: nothing could ever be significant, and flipping seed × item by seed × item
instead would pretend that a seed's items are independent. So the seed level is Student's t again (all rotations of
the seed means in place of the sign flips among them): p is the share of

    null draw = t · se_seeds + (sum over items of ± difference)

at least as far from 0 as the mean, (1 + count)/(1 + draws). If only items vary it is the permutation test by items,
if only seeds vary the paired t test. `p_seeds` is the exact sign-flip test over the seed means, without any
assumption, beside its smallest possible value 2^(1 − S): it says how far the seeds alone go.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import optimize, stats

from train.comparison.statistics.measures import Measure
from train.comparison.statistics.resampling import bootstrap_sums, flipped_sums, shuffled_student
from train.comparison.statistics.seeds import LEVEL

DRAWS = 10_000
POWER = 0.8
BLOCK_NUMBERS = 1 << 25  # drawn sums held at a time, of 8 bytes, twice
EXACT_SEEDS = 16  # up to here all sign patterns are tried
ROUNDING = 1e-9  # differences that are closer to each other, relatively, are equal


@dataclass(frozen=True)
class Pairs:
    """Both points' measures, seed by seed."""

    seeds: tuple[int, ...]
    first: tuple[Measure, ...]
    second: tuple[Measure, ...]  # the difference is first − second


@dataclass(frozen=True)
class Estimate:
    """A difference and all that is known of it. None: what these runs cannot tell."""

    differences: tuple[float, ...]  # one a seed
    difference: float | None  # their mean; None where one is NaN
    low: float | None
    high: float | None
    p: float | None
    se_seeds: float | None
    se_items: float | None  # of the mean over seeds, when items are drawn anew
    num_units: int  # items, or groups of items that belong together; 0: unknown or one; over seeds alone then

    @cached_property
    def p_seeds(self) -> float | None:
        """The exact two-sided p of sign flips over seeds; None with one seed."""
        return None if self.difference is None or len(self.differences) < 2 else _sign_flips(self.differences)

    @property
    def p_seeds_floor(self) -> float | None:
        """The smallest p that sign flips of so many seeds can give."""
        return None if self.difference is None or len(self.differences) < 2 else 2.0 ** (1 - len(self.differences))

    @property
    def covers(self) -> str:
        """What the interval is for: new seeds, new items, both or neither."""
        if self.low is None:
            return "neither"
        seeds, items = len(self.differences) > 1, self.num_units > 0
        return "both" if seeds and items else "seeds" if seeds else "items"

    def detectable(self, level: float = LEVEL, num_comparisons: int = 1) -> float | None:
        """Return the smallest true difference found with a chance of about 80 %; a table shares the error rate."""
        if self.low is None or self.se_seeds is None or self.se_items is None:
            return None
        # Nothing of the residual is taken out here: in planning, too many seeds are the lesser harm.
        # A variance of few values is more often too small than too large: its median is made right.
        freedom = len(self.differences) - 1
        seeds = float(stats.sem(self.differences) * np.sqrt(freedom / stats.chi2.median(freedom)))
        error = np.hypot(seeds, self.se_items)
        if error == 0.0:
            return 0.0
        spread = [(seeds, freedom), (self.se_items, self.num_units - 1)]
        df = error**4 / sum(se**4 / max(number, 1) for se, number in spread if se)
        critical = stats.t.isf((1.0 - level) / num_comparisons / 2.0, df)

        def missing(units: float) -> float:
            return stats.nct.sf(critical, df, units) - POWER

        # With two seeds the error of a drawing is often far above its mean: 19 of 20 are below this.
        enough = critical * np.sqrt(stats.chi2.isf(0.05, df) / df) + 5.0
        return float(optimize.brentq(missing, 0.0, enough) * error)


def estimate(pairs: Sequence[Pairs], draws: int = DRAWS, seed: int = 0, level: float = LEVEL) -> list[Estimate]:
    """Return the estimate of every comparison; a block's that share an item set are drawn together.

    Each item set has its own random numbers, so the blocks, which bound the memory, change nothing.
    """
    block = max(1, BLOCK_NUMBERS // draws)
    found = []
    for start in range(0, len(pairs), block):
        found += _estimate_block(pairs[start : start + block], draws, seed, level)
    return found


def _estimate_block(pairs: Sequence[Pairs], draws: int, seed: int, level: float) -> list[Estimate]:
    components = [_Components.of(pair) for pair in pairs]
    drawn: list[np.ndarray | None] = [None] * len(pairs)
    flipped: list[np.ndarray | None] = [None] * len(pairs)
    for name, wanted in _by_item_set(components).items():
        for sums, function, which in ((drawn, bootstrap_sums, "influences"), (flipped, flipped_sums, "contributions")):
            rows = np.stack([getattr(components[index], which)[name] for index in wanted])
            for index, row in zip(wanted, function(rows, name, draws, seed), strict=True):
                sums[index] = row if sums[index] is None else sums[index] + row
    return [
        component.estimate(drawn[index], flipped[index], draws, seed, level)
        for index, component in enumerate(components)
    ]


def _by_item_set(components: Sequence["_Components"]) -> dict[str, list[int]]:
    names: dict[str, list[int]] = {}
    for index, component in enumerate(components):
        for name in component.influences if np.isfinite(component.differences).all() else ():
            names.setdefault(name, []).append(index)
    return names


@dataclass(frozen=True)
class _Components:
    """What a comparison is resampled from."""

    differences: np.ndarray  # (seeds,)
    influences: dict[str, np.ndarray]  # item set: (units,), mean over seeds
    contributions: dict[str, np.ndarray]
    se_seeds: float | None
    se_items: float | None
    num_units: int

    @classmethod
    def of(cls, pairs: Pairs) -> "_Components":
        """Split the variation into seeds, items and the rest."""
        differences = np.array([a.value - b.value for a, b in zip(pairs.first, pairs.second, strict=True)])
        seeds = len(differences)
        influences, contributions = {}, {}
        items = rest = 0.0
        units = 0
        for position, part in enumerate(pairs.first[0].parts if _have_parts(pairs) else ()):
            both = [(a.parts[position], b.parts[position]) for a, b in zip(pairs.first, pairs.second, strict=True)]
            change = np.stack([a.influences - b.influences for a, b in both])  # (seeds, units), rows sum to 0
            number = change.shape[1]
            mean = change.mean(0)
            influences[part.item_set] = mean
            contributions[part.item_set] = np.mean([a.contributions - b.contributions for a, b in both], axis=0)
            units += number
            items += number / (number - 1) * float(mean @ mean)
            if seeds > 1:
                left = change - mean
                rest += number / ((number - 1) * (seeds - 1) * seeds) * float((left * left).sum())
        if seeds < 2:
            return cls(differences, influences, contributions, None, np.sqrt(items) if units else None, units)
        between = float(differences.var(ddof=1)) / seeds
        kept = between - (1.0 - 2.0 / seeds) * rest
        return cls(differences, influences, contributions, float(np.sqrt(max(kept, 0.0))), float(np.sqrt(items)), units)

    def estimate(
        self, drawn: np.ndarray | None, flipped: np.ndarray | None, draws: int, seed: int, level: float
    ) -> Estimate:
        """Put seeds and items together."""
        each = tuple(self.differences.tolist())
        if not each or not np.isfinite(self.differences).all():
            return Estimate(each, None, None, None, None, None, None, self.num_units)
        mean = float(self.differences.mean())
        low = high = p = None
        if self.num_units:
            by_seed = 0.0 if not self.se_seeds else shuffled_student(len(each), draws, seed) * self.se_seeds
            low, high = np.quantile(mean + drawn + by_seed, [(1 - level) / 2, (1 + level) / 2]).tolist()
            null = np.abs(flipped + by_seed)
            p = (1 + int((null >= abs(mean) * (1 - ROUNDING)).sum())) / (1 + draws)
        elif len(each) > 1:
            low, high, p = _student(self.differences, level)
            if p is None:  # one difference, seed after seed: Student's t has nothing to go by
                p = _sign_flips(each)
        return Estimate(each, mean, low, high, p, self.se_seeds, self.se_items, self.num_units)


def _have_parts(pairs: Pairs) -> bool:
    """Return whether all measures are made of the same items, at least two a set: one alone shows no spread."""
    sets = {tuple((part.item_set, len(part.influences)) for part in m.parts) for m in (*pairs.first, *pairs.second)}
    return len(sets) == 1 and all(number > 1 for _, number in next(iter(sets))) and () not in sets


def _student(differences: np.ndarray, level: float) -> tuple[float, float, float | None]:
    if np.ptp(differences) <= ROUNDING * np.abs(differences).max():
        value = float(differences.mean())
        return value, value, None
    test = stats.ttest_1samp(differences, 0.0)
    interval = test.confidence_interval(level)
    return float(interval.low), float(interval.high), float(test.pvalue)


def _sign_flips(differences: Sequence[float]) -> float:
    """Return the two-sided p of sign flips: exact up to 16 seeds, of random signs beyond.

    scipy's `permutation_test` counts ties only to 1e-14 of the value; differences of scores carry more rounding.
    """
    values = np.asarray(differences)
    if len(values) <= EXACT_SEEDS:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=len(values))))
    else:
        signs = np.random.default_rng(0).choice((1.0, -1.0), (2**EXACT_SEEDS, len(values)))
        signs[0] = 1.0
    far = np.abs(signs @ values) >= abs(values.sum()) - ROUNDING * np.abs(values).max()
    return float(far.mean())
