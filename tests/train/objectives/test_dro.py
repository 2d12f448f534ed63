"""Group DRO at its ends: no step is the mean over groups, a large one is go's worst group, and the point is minimax."""

import pytest
import torch

from tests.train.runs import make_objective
from train.data.counts import Counts
from train.objectives.base import Moment
from train.objectives.tokens import Sums, Tokens, group_sums


def tokens_of(losses, groups):
    count = len(losses)
    return Tokens(
        torch.ones(count, dtype=torch.bool), torch.zeros(count, dtype=torch.long), 1, 2, losses, torch.tensor(groups)
    )


def step(objective, losses, groups):
    """Return a step's loss, and let the objective take the step in."""
    tokens = tokens_of(losses, groups)
    sums = Sums(group_sums(tokens), torch.zeros(0, dtype=torch.float64))
    counts = Counts(len(groups), 1, (groups.count(0), groups.count(1)))
    decision = objective.decide(sums, counts, Moment()) if objective.decides(Moment()) else None
    loss = objective.loss(tokens, counts, decision, Moment())
    assert float(objective.value(sums, counts, Moment())) == pytest.approx(loss.item(), abs=1e-5)
    objective.advance(sums, counts)
    return loss


GROUPS = [0, 0, 0, 1]
LOSSES = [1.0, 2.0, 3.0, 5.0]  # means 2 and 5


@pytest.mark.parametrize("dro_q", ["step", "previous"])
def test_without_a_step_it_is_the_mean_over_groups(dro_q):
    objective = make_objective("dro", {"dro_step": 0.0, "dro_q": dro_q})
    for _ in range(3):
        assert step(objective, torch.tensor(LOSSES), GROUPS).item() == pytest.approx(3.5)


def test_a_large_step_takes_gos_worst_group():
    leaf = torch.tensor(LOSSES, requires_grad=True)
    loss = step(make_objective("dro", {"dro_step": 1e6}), leaf, GROUPS)
    loss.backward()
    other = torch.tensor(LOSSES, requires_grad=True)
    worst = step(make_objective("go", {"lambda_max": 1.0}), other, GROUPS)
    worst.backward()
    assert loss.item() == pytest.approx(worst.item())
    torch.testing.assert_close(leaf.grad, other.grad)


def test_by_hand():
    """q = e^(0.1 L) normalized: one step from equal weights with means 2 and 5."""
    objective = make_objective("dro", {"dro_step": 0.1})
    low, high = torch.tensor([0.2, 0.5]).exp().tolist()
    wanted = (2 * low + 5 * high) / (low + high)
    assert step(objective, torch.tensor(LOSSES), GROUPS).item() == pytest.approx(wanted, abs=1e-5)
    assert torch.as_tensor(objective.log_q).exp().tolist() == pytest.approx([low / (low + high), high / (low + high)])


def test_a_group_that_is_absent_keeps_its_weight():
    objective = make_objective("dro", {"dro_step": 1.0})
    step(objective, torch.tensor(LOSSES), GROUPS)
    before = objective.log_q.exp().tolist()
    step(objective, torch.tensor([4.0, 4.0]), [0, 0])
    assert objective.log_q.exp().tolist() == pytest.approx(before)


@pytest.mark.parametrize("dro_q", ["step", "previous"])
def test_a_convex_example_ends_at_the_minimax_point(dro_q):
    """Losses (x - 0)² and 2 (x - 3)² over x: their maximum is smallest where they meet, x = 6 - 3 √2."""
    objective = make_objective("dro", {"dro_step": 0.02, "dro_q": dro_q})
    x, visited = torch.zeros(1, requires_grad=True), []
    for _ in range(4000):
        x.grad = None
        step(objective, torch.cat([x**2, 2 * (x - 3) ** 2]), [0, 1]).backward()
        with torch.no_grad():
            x -= 0.02 * x.grad
        visited.append(x.item())
    assert sum(visited[2000:]) / 2000 == pytest.approx(6 - 3 * 2**0.5, abs=0.02)
