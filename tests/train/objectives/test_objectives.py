"""Objectives: values worked out by hand, then slow references, then what every registered objective must hold to."""

import itertools

import numpy as np
import pytest
import torch

from common.thresholds import important_tokens
from train.objectives import OBJECTIVES
from train.objectives.base import worst_group
from train.objectives.go import lambda_at
from train.objectives.rho1 import select_top
from train.objectives.tokens import Counts, Sums, Tokens, count_tokens, sum_losses
from train.settings.flags import ObjectiveSettings

# Document 0 has losses 1 2 3 (the 3 important), document 1 has 10 (important) and 4 6; one position is not supervised.
LOSS = [1.0, 2.0, 3.0, 10.0, 4.0, 6.0, 0.0]
SUPERVISED = [True] * 6 + [False]
IMPORTANT = [False, False, True, True, False, False, False]
DOCUMENT = [0, 0, 0, 1, 1, 1, 1]


def by_hand(loss=LOSS, important=IMPORTANT):
    leaf = torch.tensor(loss, requires_grad=True)
    return leaf, Tokens(leaf, torch.tensor(SUPERVISED), torch.tensor(important), torch.tensor(DOCUMENT), 2)


def settings(objective, **other):
    return ObjectiveSettings(objective=objective, **other)


def build(objective, **other):
    return OBJECTIVES[objective](settings(objective, **other))


def share(objective, tokens, counts, weight):
    sums = sum_losses(tokens, objective.needs_document_sums)
    worst = worst_group(sums, counts) if objective.needs_worst_group(weight) else None
    return objective.loss(tokens, counts, weight, worst)


class TestByHand:
    def test_counts(self):
        assert count_tokens(by_hand()[1]) == Counts(6, 2, 2)

    def test_sft(self):
        leaf, tokens = by_hand()
        loss = share(build("sft"), tokens, Counts(6, 2, 2), 0.0)
        assert loss.item() == pytest.approx(26 / 6)
        loss.backward()
        torch.testing.assert_close(leaf.grad, torch.tensor([1 / 6] * 6 + [0.0]))

    def test_go_batch(self):
        # mean 26/6; G1 = (3 + 10)/2 = 6.5; G0 = (1 + 2 + 4 + 6)/4 = 3.25; the worst is G1.
        leaf, tokens = by_hand()
        loss = share(build("go"), tokens, Counts(6, 2, 2), 0.75)
        assert loss.item() == pytest.approx(0.25 * 26 / 6 + 0.75 * 6.5)
        loss.backward()
        plain, worst = 0.25 / 6, 0.25 / 6 + 0.75 / 2
        torch.testing.assert_close(leaf.grad, torch.tensor([plain, plain, worst, worst, plain, plain, 0.0]))

    def test_go_batch_with_the_other_group_worst(self):
        leaf, tokens = by_hand(important=[True, True, False, False, False, False, False])
        loss = share(build("go"), tokens, Counts(6, 2, 2), 1.0)  # G1 = 1.5, G0 = 23/4
        assert loss.item() == pytest.approx(23 / 4)
        loss.backward()
        torch.testing.assert_close(leaf.grad, torch.tensor([0.0, 0.0, 0.25, 0.25, 0.25, 0.25, 0.0]))

    def test_go_sample(self):
        # Document 0: max(3, 1.5) = 3. Document 1: max(10, 5) = 10. Mean 6.5.
        leaf, tokens = by_hand()
        loss = share(build("go", worst_over="sample"), tokens, Counts(6, 2, 2), 0.5)
        assert loss.item() == pytest.approx(0.5 * 26 / 6 + 0.5 * 6.5)
        loss.backward()
        plain, worst = 0.5 / 6, 0.5 / 6 + 0.5 / 2 / 1
        torch.testing.assert_close(leaf.grad, torch.tensor([plain, plain, worst, worst, plain, plain, 0.0]))

    def test_rho1(self):
        _, tokens = by_hand()
        assert share(build("rho1"), tokens, Counts(6, 2, 2), 0.0).item() == pytest.approx(6.5)

    def test_an_empty_group_is_never_the_worst(self):
        _, tokens = by_hand(important=[False] * 7)
        counts = Counts(6, 0, 2)
        assert int(worst_group(sum_losses(tokens), counts)) == 0
        assert share(build("go"), tokens, counts, 0.9).item() == pytest.approx(26 / 6)
        _, tokens = by_hand(important=SUPERVISED)
        counts = Counts(6, 6, 2)
        assert int(worst_group(sum_losses(tokens), counts)) == 1
        assert share(build("go"), tokens, counts, 0.9).item() == pytest.approx(26 / 6)

    def test_equal_means_make_the_important_group_the_worst(self):
        _, tokens = by_hand(loss=[2.0] * 7)
        assert int(worst_group(sum_losses(tokens), Counts(6, 2, 2))) == 1

    def test_lambda(self):
        assert [lambda_at(step, 4, 0.8, 0.3) for step in range(4)] == pytest.approx([0.8, 0.6, 0.4, 0.3])
        assert [lambda_at(step, 4, 0.9, 0.9) for step in range(4)] == [0.9] * 4


class TestSelection:
    def test_by_hand(self):
        score = torch.tensor([1.0, 3.0, 3.0, 9.0, 5.0, 5.0])
        selected = select_top(
            score,
            torch.tensor([True, True, True, False, True, True]),
            torch.tensor([0, 0, 0, 0, 1, 1]),
            torch.tensor([1, 1]),
        )
        assert selected.tolist() == [False, True, False, False, True, False]  # ties: the earlier position

    @pytest.mark.parametrize("eta", [0.0, 0.1, 0.5, 0.7, 0.9, 0.99])
    def test_equals_the_rank_rule_of_the_thresholds(self, eta):
        rng = np.random.default_rng(3)
        lengths = rng.integers(1, 30, 20)
        score = torch.tensor(rng.integers(0, 8, lengths.sum()) / 4.0, dtype=torch.float32)  # many ties
        supervised = torch.tensor(rng.random(lengths.sum()) < 0.7)
        document = torch.repeat_interleave(torch.arange(20), torch.tensor(lengths))
        wanted = torch.zeros(len(score), dtype=torch.bool)
        chosen = []
        for index in range(20):
            at = document == index
            groups = important_tokens(score[at].numpy(), supervised[at].numpy(), eta, "rank")
            wanted[at] = torch.tensor(groups.important)
            chosen.append(int(groups.important.sum()))
        selected = select_top(score, supervised, document, torch.tensor(chosen))
        assert torch.equal(selected, wanted)
        # Positions of documents may interleave: the order of the tokens within a document is what counts.
        order = torch.argsort(torch.tensor(rng.random(len(score))))
        order = order[torch.argsort(order % 7, stable=True)]
        inverse = torch.argsort(order)
        ranked = torch.argsort(document[order], stable=True)
        assert select_top(score[order], supervised[order], document[order], torch.tensor(chosen)).sum() == wanted.sum()
        assert len(inverse) == len(ranked)


def slow_value(name, other, loss, supervised, important, document, weight):
    """The objectives from the paper's text, in plain Python and float64."""
    documents = {}
    for value, counted, group, index in zip(loss, supervised, important, document, strict=True):
        if counted:
            documents.setdefault(index, ([], []))[int(group)].append(value)
    every = [value for groups in documents.values() for group in groups for value in group]
    if not every:
        return 0.0
    mean = sum(every) / len(every)
    if name == "sft":
        return mean
    pooled = [[v for groups in documents.values() for v in groups[g]] for g in (0, 1)]
    if name == "rho1":
        return sum(pooled[1]) / len(pooled[1]) if pooled[1] else 0.0
    if other.get("worst_over") == "sample":
        worst = [max(sum(g) / len(g) for g in groups if g) for groups in documents.values()]
        return (1 - weight) * mean + weight * sum(worst) / len(worst)
    return (1 - weight) * mean + weight * max(sum(g) / len(g) for g in pooled if g)


FORMS = [("sft", {}), ("go", {}), ("go", {"worst_over": "sample"}), ("rho1", {})]


def random_tokens(seed, num_documents=7, share=0.4):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 12, num_documents)
    total = int(lengths.sum())
    supervised = torch.tensor(rng.random(total) < 0.8)
    important = torch.tensor(rng.random(total) < share) & supervised
    loss = torch.tensor(rng.gamma(2.0, 1.0, total), dtype=torch.float32) * supervised
    document = torch.repeat_interleave(torch.arange(num_documents), torch.tensor(lengths))
    return loss, supervised, important, document


def test_every_registered_objective_is_checked_here():
    assert {name for name, _ in FORMS} == set(OBJECTIVES)


@pytest.mark.parametrize(("name", "other"), FORMS)
class TestContract:
    @pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
    @pytest.mark.parametrize("group_share", [0.0, 0.4, 1.0])
    def test_equals_the_slow_reference_and_its_gradient(self, name, other, weight, group_share):
        objective = build(name, **other)
        loss, supervised, important, document = random_tokens(5, share=group_share)
        leaf = loss.clone().requires_grad_()
        tokens = Tokens(leaf, supervised, important, document, 7)
        counts = count_tokens(tokens)
        result = share(objective, tokens, counts, weight)
        arguments = (supervised.tolist(), important.tolist(), document.tolist(), weight)
        assert result.item() == pytest.approx(slow_value(name, other, loss.tolist(), *arguments), abs=1e-5)
        sums = sum_losses(tokens, objective.needs_document_sums)
        assert float(objective.value(sums, counts, weight)) == pytest.approx(result.item(), abs=1e-5)
        result.backward()
        for index in range(0, len(loss), 5):  # the slow reference's own derivative, by differences
            values = []
            for step in (1e-4, -1e-4):
                moved = loss.double().tolist()
                moved[index] += step
                values.append(slow_value(name, other, moved, *arguments))
            assert leaf.grad[index].item() == pytest.approx((values[0] - values[1]) / 2e-4, abs=1e-5)

    def test_shares_of_a_split_step_add_up(self, name, other):
        objective = build(name, **other)
        loss, supervised, important, document = random_tokens(9)
        leaf = loss.clone().requires_grad_()
        whole = Tokens(leaf, supervised, important, document, 7)
        counts = count_tokens(whole)
        share(objective, whole, counts, 0.9).backward()
        once, leaf.grad = leaf.grad.clone(), None
        parts = [document < 2, (document >= 2) & (document < 3), document >= 3]
        pieces = [Tokens(leaf[p], supervised[p], important[p], document[p], 7) for p in parts]
        sums = [sum_losses(piece, objective.needs_document_sums) for piece in pieces]
        total = sums[0].plus(sums[1]).plus(sums[2])
        worst = worst_group(total, counts) if objective.needs_worst_group(0.9) else None
        losses = [objective.loss(piece, counts, 0.9, worst) for piece in pieces]
        sum(losses).backward()
        torch.testing.assert_close(leaf.grad, once, atol=1e-6, rtol=1e-6)
        assert float(objective.value(total, counts, 0.9)) == pytest.approx(float(sum(losses)), abs=1e-5)

    def test_nothing_supervised_gives_a_finite_zero(self, name, other):
        leaf = torch.zeros(4, requires_grad=True)
        nothing = torch.zeros(4, dtype=torch.bool)
        tokens = Tokens(leaf, nothing, nothing, torch.zeros(4, dtype=torch.long), 1)
        result = share(build(name, **other), tokens, count_tokens(tokens), 0.9)
        result.backward()
        assert result.item() == 0.0
        assert leaf.grad.tolist() == [0.0] * 4

    def test_is_plain_mean_tells_the_truth(self, name, other):
        objective = build(name, **other)
        loss, supervised, important, document = random_tokens(11)
        tokens = Tokens(loss, supervised, important, document, 7)
        counts = count_tokens(tokens)
        mean = loss.sum().item() / counts.supervised
        for weight in (0.0, 0.5):
            if objective.is_plain_mean(weight):
                assert share(objective, tokens, counts, weight).item() == pytest.approx(mean, abs=1e-5)


def test_a_maximum_per_micro_batch_is_another_number():
    """The trap that the whole-step maximum avoids: the parts' maxima do not add up."""
    loss, supervised, important = torch.tensor([4.0, 0.0, 0.0, 4.0]), torch.ones(4).bool(), torch.tensor([1, 0, 1, 0])
    whole = Tokens(loss, supervised, important.bool(), torch.tensor([0, 0, 1, 1]), 2)
    exact = share(build("go"), whole, count_tokens(whole), 1.0)
    parts = []
    for at in (slice(0, 2), slice(2, 4)):
        part = Tokens(loss[at], supervised[at], important[at].bool(), torch.zeros(2, dtype=torch.long), 1)
        parts.append(share(build("go"), part, count_tokens(part), 1.0))
    assert exact.item() == 2.0
    assert sum(parts).item() / 2 == 4.0


def test_sums_stack_and_unstack():
    values = torch.tensor([1.0, 2.0, 3.0])
    assert Sums.unstack(values).stack().tolist() == values.tolist()


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"eta": 1.0}, "--eta"),
        ({"eta": -0.1}, "--eta"),
        ({"lambda_max": 1.5}, "--lambda_max"),
        ({"lambda_max": 0.2, "lambda_min": 0.5}, "--lambda_min"),
        ({"objective": "sft", "lambda_max": 0.5}, "--lambda_max"),
        ({"objective": "rho1", "worst_over": "sample"}, "--worst_over"),
        ({"objective": "rho1", "ties": "threshold"}, "--ties"),
        ({"objective": "sft", "dynamic_groups": True}, "--dynamic_groups"),
        ({"select_over": "batch"}, "--select_over"),
        ({"objective": "nonsense"}, "--objective"),
    ],
)
def test_settings_that_contradict_are_named(changes, word):
    problems = ObjectiveSettings(**changes).problems()
    assert [word in problem for problem in problems] == [True]


def test_problems_come_together():
    assert len(ObjectiveSettings(eta=1.0, lambda_max=2.0, select_over="batch").problems()) == 3


def test_default_settings_are_sound():
    for objective, dynamic in itertools.product(OBJECTIVES, (False,)):
        assert ObjectiveSettings(objective=objective, dynamic_groups=dynamic).problems() == []
