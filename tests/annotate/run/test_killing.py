"""A few trials of `tests.annotate.run.killing`, which anyone can run for longer."""

import random

import pytest

from tests.annotate.run.killing import KINDS, Trials


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_was_killed_ends_as_if_it_had_not_been(tmp_path, kind):
    trials, chance, hits = Trials(tmp_path, "local", slow=False), random.Random(5), 0
    for event in (3, 21, 60, None):
        problem, kills = trials.trial(kind, chance, event)
        assert problem is None
        hits += kills
    assert hits >= 2
