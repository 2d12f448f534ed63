"""The statistics against scipy and numpy written here, and the coverage of the interval by simulation."""

import itertools

import numpy as np
import pytest
from scipy import stats

from train.comparison.statistics.differences import Pairs, estimate
from train.comparison.statistics.holm import holm
from train.comparison.statistics.measures import Measure, combine, ratio
from train.comparison.statistics.resampling import bootstrap_sums, flipped_sums
from train.comparison.statistics.seeds import summarize


def pairs_of(differences: np.ndarray, base: np.ndarray | float = 0.0, weights=None, groups=None, name="items") -> Pairs:
    """Return pairs whose items differ by (seeds, items)."""
    seeds, items = differences.shape
    weights = np.ones(items) if weights is None else weights
    base = np.broadcast_to(base, differences.shape)
    first = tuple(ratio(name, (b + d) * weights, weights, groups) for b, d in zip(base, differences, strict=True))
    second = tuple(ratio(name, b * weights, weights, groups) for b in base)
    return Pairs(tuple(range(seeds)), first, second)


def test_mean_sd_and_interval_by_hand():
    summary = summarize([1.0, 2.0, 3.0, 4.0])
    assert summary.mean == 2.5
    assert summary.sd == pytest.approx(np.sqrt(5 / 3))
    assert summary.high - 2.5 == pytest.approx(3.182446305284263 * np.sqrt(5 / 3) / 2)  # t(0.975; 3), n = 4
    assert 2.5 - summary.low == pytest.approx(summary.high - 2.5)


def test_mean_sd_and_interval_are_scipys():
    values = np.random.default_rng(0).normal(3, 2, 5)
    summary = summarize(values)
    wanted = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (summary.mean, summary.sd) == pytest.approx((values.mean(), np.std(values, ddof=1)))
    assert (summary.low, summary.high) == pytest.approx((wanted.low, wanted.high))


def test_few_and_bad_values():
    assert summarize([2.0]) == summarize([2.0])
    assert (summarize([2.0]).mean, summarize([2.0]).sd, summarize([2.0]).low) == (2.0, None, None)
    assert (summarize([2.0, 2.0]).low, summarize([2.0, 2.0]).high) == (2.0, 2.0)
    bad = summarize([1.0, float("nan"), 2.0])
    assert (bad.mean, bad.num_non_finite) == (None, 1)
    assert summarize([]).mean is None


def test_holm_by_hand_and_by_definition():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    rng = np.random.default_rng(1)
    for _ in range(50):
        p = rng.random(rng.integers(1, 12)) ** 3
        ranks = [sorted(range(len(p)), key=lambda i: p[i]).index(j) for j in range(len(p))]
        slow = [max(min(1.0, (len(p) - ranks[k]) * p[k]) for k in range(len(p)) if ranks[k] <= r) for r in ranks]
        assert holm(p) == pytest.approx(slow)


def test_a_ratio_and_its_groups():
    measure = ratio("x", np.array([2.0, 3.0, 7.0]), np.array([1.0, 2.0, 3.0]), ["a", None, "a"])
    assert measure.value == pytest.approx(2.0)
    part = measure.parts[0]
    assert part.contributions == pytest.approx([9 / 6, 3 / 6])
    assert part.influences == pytest.approx([(9 - 2 * 4) / 6, (3 - 2 * 2) / 6])
    assert np.isnan(ratio("x", np.zeros(2), np.zeros(2)).value)
    assert ratio("x", np.array([np.nan, 1.0]), np.ones(2)).value != 1.0


def test_influences_are_what_a_resampled_ratio_does():
    rng = np.random.default_rng(2)
    loss, tokens = rng.random(300) * 50, rng.integers(1, 90, 300).astype(float)
    measure = ratio("x", loss, tokens)
    drawn = rng.integers(300, size=(400, 300))
    exact = loss[drawn].sum(1) / tokens[drawn].sum(1)
    linear = measure.value + measure.parts[0].influences[drawn].sum(1)
    assert (exact - linear).std() < 0.08 * exact.std()


def test_a_mean_of_columns_draws_shared_items_once():
    rng = np.random.default_rng(3)
    a, b = rng.random(40), rng.random(40)
    both = combine([(0.5, ratio("same", a, np.ones(40))), (0.5, ratio("same", b, np.ones(40)))])
    assert both.value == pytest.approx((a.mean() + b.mean()) / 2)
    assert len(both.parts) == 1
    assert both.parts[0].contributions == pytest.approx((a + b) / 80)
    apart = combine([(0.5, ratio("one", a, np.ones(40))), (0.5, ratio("other", b, np.ones(40)))])
    assert [part.item_set for part in apart.parts] == ["one", "other"]
    assert combine([(0.5, ratio("one", a, np.ones(40))), (0.5, Measure(1.0))]).parts == ()


def test_draws_are_what_they_say():
    rows = np.random.default_rng(4).normal(size=(2, 30))
    drawn = bootstrap_sums(rows, "x", 20_000, 0)
    assert drawn.mean(1) == pytest.approx(rows.sum(1), abs=0.15)
    assert drawn.std(1) == pytest.approx(np.sqrt(30) * rows.std(1), rel=0.03)
    flipped = flipped_sums(rows, "x", 20_000, 0)
    assert flipped.mean(1) == pytest.approx([0, 0], abs=0.15)
    assert flipped.std(1) == pytest.approx(np.sqrt((rows**2).sum(1)), rel=0.03)
    again = bootstrap_sums(rows[1:], "x", 20_000, 0)
    assert np.allclose(again[0], drawn[1])  # whatever else is compared
    assert not np.allclose(bootstrap_sums(rows, "y", 100, 0), drawn[:, :100])


def test_if_only_seeds_vary_it_is_the_paired_t_test():
    seeds = np.array([0.3, 0.1, 0.4, -0.1, 0.2])
    (found,) = estimate([pairs_of(np.repeat(seeds[:, None], 50, axis=1), base=np.random.default_rng(5).random(50))])
    test = stats.ttest_1samp(seeds, 0.0)
    assert found.difference == pytest.approx(0.18)
    assert (found.low, found.high) == pytest.approx(tuple(test.confidence_interval(0.95)), abs=0.002)
    # Signs of items are drawn under the hypothesis, so the mean itself adds a little to the null's spread.
    assert found.p == pytest.approx(test.pvalue, abs=0.01)
    assert found.covers == "both"


def test_if_only_items_vary_it_is_the_bootstrap_and_the_permutation_test_by_items():
    items = np.random.default_rng(6).exponential(1.0, 60) - 0.75
    (found,) = estimate([pairs_of(np.repeat(items[None], 5, axis=0))])
    boot = stats.bootstrap((items,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(0))
    assert (found.low, found.high) == pytest.approx(tuple(boot.confidence_interval), abs=0.02)
    test = stats.permutation_test(
        (items,),
        np.mean,
        permutation_type="samples",
        n_resamples=20_000,
        vectorized=False,
        rng=np.random.default_rng(0),
    )
    assert found.p == pytest.approx(test.pvalue, abs=0.015)
    (alone,) = estimate([pairs_of(items[None])])
    assert (alone.covers, alone.se_seeds) == ("items", None)
    assert alone.p == pytest.approx(found.p)


def test_without_items_it_is_scipys_t_test():
    first, second = np.array([1.2, 1.5, 1.1]), np.array([1.0, 1.1, 1.05])
    (found,) = estimate([Pairs((1, 2, 3), tuple(map(Measure, first)), tuple(map(Measure, second)))])
    test = stats.ttest_rel(first, second)
    assert found.p == pytest.approx(test.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(test.confidence_interval()))
    assert found.covers == "seeds"


def test_sign_flips_over_seeds_are_exact():
    rng = np.random.default_rng(7)
    differences = rng.normal(0.4, 1.0, (5, 30))
    (found,) = estimate([pairs_of(differences)])
    means = differences.mean(1)
    flips = [abs(np.dot(signs, means)) for signs in itertools.product([-1, 1], repeat=5)]
    assert found.p_seeds == pytest.approx(np.mean(np.array(flips) >= abs(means.sum()) - 1e-12))
    assert found.p_seeds_floor == 1 / 16
    scipys = stats.permutation_test((means,), np.mean, permutation_type="samples", vectorized=False)
    assert found.p_seeds == pytest.approx(scipys.pvalue)
    ties = pairs_of(np.repeat([[0.1], [0.2], [0.3], [-0.6], [0.3]], 3, axis=1) / 7)  # 0.3 = 0.1 + 0.2, but for rounding
    flips = [abs(np.dot(signs, [1, 2, 3, -6, 3])) >= 3 for signs in itertools.product([-1, 1], repeat=5)]
    assert estimate([ties])[0].p_seeds == np.mean(flips)
    (all_up,) = estimate([pairs_of(np.abs(differences) + 1)])
    assert all_up.p_seeds == 1 / 16


def test_identical_runs_give_no_difference_and_p_one():
    base = np.random.default_rng(8).random((5, 40))
    (found,) = estimate([pairs_of(np.zeros((5, 40)), base)])
    assert (found.difference, found.low, found.high, found.p, found.p_seeds) == (0.0, 0.0, 0.0, 1.0, 1.0)
    assert found.detectable() == 0.0
    (alone,) = estimate([pairs_of(np.zeros((1, 40)), base[:1])])
    assert (alone.difference, alone.low, alone.high, alone.p) == (0.0, 0.0, 0.0, 1.0)
    (bare,) = estimate([Pairs((1, 2), (Measure(1.0), Measure(2.0)), (Measure(1.0), Measure(2.0)))])
    assert (bare.difference, bare.p) == (0.0, 1.0)


def test_one_item_says_nothing_of_other_items():
    """Its spread is unknown, not zero."""
    each = np.array([[0.2], [0.3], [0.1]])
    (found,) = estimate([pairs_of(each)])
    test = stats.ttest_1samp(each[:, 0], 0.0)
    assert (found.covers, found.num_units, found.p) == ("seeds", 0, pytest.approx(test.pvalue))
    assert (found.low, found.high) == pytest.approx(tuple(test.confidence_interval()))
    (alone,) = estimate([pairs_of(each[:1])])
    assert (alone.difference, alone.low, alone.p, alone.covers) == (pytest.approx(0.2), None, None, "neither")
    (grouped,) = estimate([pairs_of(np.full((1, 5), 0.2), np.random.default_rng(1).random(5), groups=["a"] * 5)])
    assert (grouped.low, grouped.covers) == (None, "neither")


def test_seeds_that_differ_by_rounding_alone_are_no_evidence():
    first = (0.1 + 0.2, 0.3, 0.30000000000000004)
    (found,) = estimate([Pairs((1, 2, 3), tuple(map(Measure, first)), tuple(map(Measure, (0.0,) * 3)))])
    assert found.p == found.p_seeds == 1 / 4
    assert found.low == found.high == pytest.approx(0.3)


def test_blocks_change_nothing(monkeypatch):
    rng = np.random.default_rng(16)
    pairs = [pairs_of(rng.normal(0.1, 1, (3, 30)), name=f"set {i % 2}") for i in range(5)]
    whole = estimate(pairs, draws=500)
    monkeypatch.setattr("train.comparison.statistics.differences.BLOCK_NUMBERS", 1000)
    for one, other in zip(estimate(pairs, draws=500), whole, strict=True):
        assert (one.low, one.high, one.p) == pytest.approx((other.low, other.high, other.p))


def test_nan_is_not_compared():
    differences = np.random.default_rng(9).random((5, 40))
    differences[2, 7] = np.nan
    bad, good = estimate([pairs_of(differences), pairs_of(np.nan_to_num(differences))])
    assert bad.difference is None
    assert (bad.low, bad.p, bad.p_seeds, bad.detectable()) == (None, None, None, None)
    assert good.p is not None


def test_the_other_way_round_is_the_mirror_image():
    rng = np.random.default_rng(10)
    pairs = pairs_of(rng.normal(0.1, 1, (4, 50)), rng.random(50), weights=rng.integers(1, 9, 50).astype(float))
    one, other = estimate([pairs, Pairs(pairs.seeds, pairs.second, pairs.first)])
    assert other.difference == pytest.approx(-one.difference)
    assert (other.low, other.high) == pytest.approx((-one.high, -one.low), abs=0.03)
    assert other.p == pytest.approx(one.p, abs=1e-3)


def test_items_that_belong_together_are_drawn_together():
    rng = np.random.default_rng(11)
    passages = np.repeat(rng.normal(0, 1, 20), 10)  # ten questions of a passage share its effect
    differences = np.tile(passages + 0.1 * rng.normal(size=200), (5, 1))
    groups = [str(i // 10) for i in range(200)]
    alone, together = estimate([pairs_of(differences), pairs_of(differences, groups=groups, name="passages")])
    assert alone.difference == pytest.approx(together.difference)
    assert together.se_items == pytest.approx(passages.std(ddof=1) / np.sqrt(20), rel=0.1)
    assert together.high - together.low > 2.5 * (alone.high - alone.low)
    assert (alone.num_units, together.num_units) == (200, 20)


def test_standard_errors_are_those_of_the_two_way_table():
    rng = np.random.default_rng(12)
    d = rng.normal(0, 0.3, (5, 1)) + rng.normal(0, 0.5, (1, 80)) + rng.normal(0, 1, (5, 80))
    (found,) = estimate([pairs_of(d)])
    rest = d - d.mean(1, keepdims=True) - d.mean(0, keepdims=True) + d.mean()
    residual = (rest**2).sum() / (4 * 79) / 400
    assert found.se_items == pytest.approx(d.mean(0).std(ddof=1) / np.sqrt(80))
    assert found.se_seeds == pytest.approx(np.sqrt(max(0.0, d.mean(1).var(ddof=1) / 5 - (1 - 2 / 5) * residual)))


def test_two_seeds_in_a_large_table_can_detect_only_what_is_huge():
    rng = np.random.default_rng(3)
    (found,) = estimate([pairs_of(rng.standard_normal((2, 50)) + np.array([[0.0], [4.0]]))], draws=1000)
    values = [found.detectable(num_comparisons=number) for number in (1, 20, 60)]
    assert np.isfinite(values).all()
    assert values == sorted(values)
    assert values[2] > 100 * found.se_seeds


def test_what_is_detectable_is_detected_about_four_times_of_five():
    """A little less often: what is detectable is estimated, and the test is careful with few seeds."""
    rng = np.random.default_rng(13)
    d = rng.normal(0, 0.1, (400, 5, 1)) + rng.normal(0, 0.4, (400, 1, 100)) + rng.normal(0, 0.5, (400, 5, 100))
    seen = np.median([e.detectable() for e in estimate([pairs_of(x) for x in d], draws=1000)])
    power = np.mean([e.p < 0.05 for e in estimate([pairs_of(x + seen) for x in d], draws=1000)])
    assert 0.65 < power < 0.9
    (one,) = estimate([pairs_of(d[0])], draws=1000)
    assert one.detectable(num_comparisons=20) > one.detectable()


@pytest.mark.parametrize(
    ("seed_sd", "item_sd", "least", "most"),
    [
        (0.07, 0.5, 0.93, 0.97),
        (0.2, 0.5, 0.93, 0.97),
        (0.5, 0.5, 0.93, 0.97),
        (0.2, 0.0, 0.93, 0.97),
        (0, 0.5, 0.94, 0.985),
    ],
)
def test_the_interval_covers_and_the_test_keeps_its_level(seed_sd, item_sd, least, most):
    """5 seeds × 200 items, 1,000 experiments; the last case has no seed effect, where it covers a little too often."""
    rng = np.random.default_rng([14, int(100 * seed_sd), int(100 * item_sd)])
    experiments, truth = 1000, 0.3
    d = truth + rng.normal(0, seed_sd, (experiments, 5, 1)) + rng.normal(0, item_sd, (experiments, 1, 200))
    d += rng.normal(0, 1, (experiments, 5, 200))
    found = estimate([pairs_of(x) for x in d], draws=2000)
    assert least <= np.mean([e.low <= truth <= e.high for e in found]) <= most
    null = estimate([pairs_of(x - truth) for x in d], draws=2000)
    assert 0.01 <= np.mean([e.p < 0.05 for e in null]) <= 0.07


def test_drawing_seeds_as_well_would_cover_too_rarely():
    """Why the seed level is Student's t: the plain bootstrap over 5 seeds × 200 items, written here."""
    rng = np.random.default_rng(15)
    covered = 0
    for _ in range(200):
        d = rng.normal(0, 0.5, (5, 1)) + rng.normal(0, 0.5, (1, 200)) + rng.normal(0, 1, (5, 200))
        seeds, items = rng.integers(5, size=(400, 5)), rng.multinomial(200, [1 / 200] * 200, 400) / 200
        drawn = np.array([(d @ w)[s].mean() for s, w in zip(seeds, items, strict=True)])
        low, high = np.quantile(drawn, [0.025, 0.975])
        covered += low <= 0 <= high
    assert covered / 200 < 0.92
