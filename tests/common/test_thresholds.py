import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError
from common.thresholds import important_tokens, num_important

SCORES = np.array([9.0, 1.0, 2.0, 3.0, 4.0, 5.0], dtype=np.float32)
SUPERVISED = np.array([False, True, True, True, True, True])


def test_by_hand():
    # supervised scores 1..5: the 0.5-quantile is 3, so 4 and 5 are important; the unsupervised 9 never is
    groups = important_tokens(SCORES, SUPERVISED, eta=0.5)
    assert groups.threshold == 3.0
    assert groups.important.tolist() == [False, False, False, False, True, True]


def test_interpolated_threshold_by_hand():
    # position 0.7 * 4 = 2.8 between 3 and 4: 3.8
    groups = important_tokens(SCORES, SUPERVISED, eta=0.7)
    assert groups.threshold == pytest.approx(3.8)
    assert groups.important.sum() == 2


def test_eta_zero_leaves_out_the_lowest_score_only():
    assert important_tokens(SCORES, SUPERVISED, eta=0.0).important.sum() == 4
    assert important_tokens(SCORES, SUPERVISED, eta=0.0, ties="rank").important.sum() == 5


def test_constant_scores_have_an_empty_important_group():
    scores = np.full(8, 0.1, dtype=np.float32)
    supervised = np.ones(8, dtype=bool)
    assert not important_tokens(scores, supervised, eta=0.7).important.any()
    ranked = important_tokens(scores, supervised, eta=0.7, ties="rank").important
    assert ranked.tolist() == [True, True, True, False, False, False, False, False]


def test_rank_takes_the_earlier_of_equal_scores():
    scores = np.array([1, 2, 2, 2, 0], dtype=np.float32)
    ranked = important_tokens(scores, np.ones(5, dtype=bool), eta=0.6, ties="rank").important
    assert ranked.tolist() == [False, True, True, False, False]


@pytest.mark.parametrize(
    ("eta", "tokens", "wanted"), [(0.7, 10, 3), (0.9, 10, 1), (0.29, 100, 71), (0.55, 20, 9), (0.0, 7, 7), (0.9, 1, 1)]
)
def test_rank_counts_are_exact_decimals(eta, tokens, wanted):
    assert num_important(eta, tokens) == wanted


def test_no_supervised_token():
    groups = important_tokens(SCORES, np.zeros(6, dtype=bool), eta=0.5)
    assert not groups.important.any()
    assert math.isnan(groups.threshold)


@pytest.mark.parametrize("eta", [1.0, -0.1, float("nan"), 2])
def test_eta_out_of_range(eta):
    with pytest.raises(UserError, match=r"lies in \[0, 1\)"):
        important_tokens(SCORES, SUPERVISED, eta=eta)


def test_scores_that_are_not_finite_are_refused_only_where_they_count():
    scores = SCORES.copy()
    scores[0] = np.nan  # not supervised
    important_tokens(scores, SUPERVISED, eta=0.5)
    scores[1] = np.inf
    with pytest.raises(UserError, match="finite"):
        important_tokens(scores, SUPERVISED, eta=0.5)


def test_unknown_ties():
    with pytest.raises(UserError, match="ties"):
        important_tokens(SCORES, SUPERVISED, eta=0.5, ties="first")


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=40),
    st.integers(0, 99).map(lambda percent: percent / 100),
)
def test_equals_a_slow_reference(tokens, eta):
    scores = np.array([score for score, _ in tokens], dtype=np.float32)
    supervised = np.array([flag for _, flag in tokens])
    chosen = sorted((score for score, flag in tokens if flag))
    if not chosen:
        return
    place = eta * (len(chosen) - 1)
    low, high = chosen[math.floor(place)], chosen[math.ceil(place)]
    threshold = low + (high - low) * (place - math.floor(place))
    groups = important_tokens(scores, supervised, eta)
    assert groups.threshold == pytest.approx(threshold, abs=1e-9)
    # far from the threshold the groups are certain
    for (score, flag), important in zip(tokens, groups.important, strict=True):
        if abs(score - threshold) > 1e-9:
            assert important == (flag and score > threshold)
    ranked = important_tokens(scores, supervised, eta, ties="rank").important
    order = sorted((i for i, (_, flag) in enumerate(tokens) if flag), key=lambda i: (-tokens[i][0], i))
    assert sorted(np.flatnonzero(ranked)) == sorted(order[: num_important(eta, len(order))])
