"""Objectives: values worked out by hand, then slow references, then what every registered objective must hold to."""

import dataclasses

import numpy as np
import pytest
import torch

from common.thresholds import important_tokens
from tests.train.objectives import slow
from tests.train.runs import make_objective
from train.data.counts import Counts
from train.objectives import OBJECTIVES
from train.objectives.base import Moment, worst_group
from train.objectives.excess import select_top
from train.objectives.schedules import lambda_at
from train.objectives.tokens import Sums, Tokens, count_tokens, group_sums

# Document 0 has losses 1 2 3 (the 3 important), document 1 has 10 (important) and 4 6; one position is not supervised.
LOSS = [1.0, 2.0, 3.0, 10.0, 4.0, 6.0, 0.0]
SUPERVISED = [True] * 6 + [False]
GROUP = [0, 0, 1, 1, 0, 0, 0]
DOCUMENT = [0, 0, 0, 1, 1, 1, 1]
START = Moment(0, 1)


def by_hand(loss=LOSS, group=GROUP, **more):
    leaf = torch.tensor(loss, requires_grad=True)
    tokens = Tokens(
        torch.tensor(SUPERVISED), torch.tensor(DOCUMENT), 2, 2, leaf, None if group is None else torch.tensor(group)
    )
    return leaf, dataclasses.replace(tokens, **more)


def build(name, **own):
    return make_objective(name, own)


def sums_of(objective, tokens):
    groups, own = group_sums(tokens), objective.statistics(tokens)
    return Sums(groups, groups[:0] if own is None else own)


def counts_of(objective, tokens):
    return count_tokens(tokens, objective.amounts(tokens))


def decision_of(objective, sums, counts, moment):
    return objective.decide(sums, counts, moment) if objective.decides(moment) else None


def share(objective, tokens, counts, moment=START):
    return objective.loss(tokens, counts, decision_of(objective, sums_of(objective, tokens), counts, moment), moment)


class TestByHand:
    def test_counts(self):
        assert count_tokens(by_hand()[1]) == Counts(6, 2, (4, 2))

    def test_sft(self):
        leaf, tokens = by_hand()
        loss = share(build("sft"), tokens, Counts(6, 2, (4, 2)))
        assert loss.item() == pytest.approx(26 / 6)
        loss.backward()
        torch.testing.assert_close(leaf.grad, torch.tensor([1 / 6] * 6 + [0.0]))

    def test_go_batch(self):
        # mean 26/6; G1 = (3 + 10)/2 = 6.5; G0 = (1 + 2 + 4 + 6)/4 = 3.25; the worst is G1.
        leaf, tokens = by_hand()
        loss = share(build("go", lambda_max=0.75), tokens, Counts(6, 2, (4, 2)))
        assert loss.item() == pytest.approx(0.25 * 26 / 6 + 0.75 * 6.5)
        loss.backward()
        plain, worst = 0.25 / 6, 0.25 / 6 + 0.75 / 2
        torch.testing.assert_close(leaf.grad, torch.tensor([plain, plain, worst, worst, plain, plain, 0.0]))

    def test_go_batch_with_the_other_group_worst(self):
        leaf, tokens = by_hand(group=[1, 1, 0, 0, 0, 0, 0])
        loss = share(build("go", lambda_max=1.0), tokens, Counts(6, 2, (4, 2)))  # G1 = 1.5, G0 = 23/4
        assert loss.item() == pytest.approx(23 / 4)
        loss.backward()
        torch.testing.assert_close(leaf.grad, torch.tensor([0.0, 0.0, 0.25, 0.25, 0.25, 0.25, 0.0]))

    def test_go_sample(self):
        # Document 0: max(3, 1.5) = 3. Document 1: max(10, 5) = 10. Mean 6.5.
        leaf, tokens = by_hand()
        loss = share(build("go", worst_over="sample", lambda_max=0.5), tokens, Counts(6, 2, (4, 2)))
        assert loss.item() == pytest.approx(0.5 * 26 / 6 + 0.5 * 6.5)
        loss.backward()
        plain, worst = 0.5 / 6, 0.5 / 6 + 0.5 / 2 / 1
        torch.testing.assert_close(leaf.grad, torch.tensor([plain, plain, worst, worst, plain, plain, 0.0]))

    def test_go_over_three_groups(self):
        # G0 = (1 + 2)/2, G1 = (3 + 4)/2, G2 = (10 + 6)/2 = 8, the worst.
        leaf, tokens = by_hand(group=[0, 0, 1, 2, 1, 2, 0], num_groups=3)
        loss = share(build("go", lambda_max=1.0, group_quantiles="0.3,0.6"), tokens, count_tokens(tokens))
        assert loss.item() == pytest.approx(8)
        loss.backward()
        assert leaf.grad.tolist() == [0, 0, 0, 0.5, 0, 0.5, 0]

    def test_go_with_soft_groups(self):
        # G1 = (0.5·3 + 1·10)/1.5 = 23/3; G0 = (1 + 2 + 0.5·3 + 4 + 6)/4.5: the worst is G1.
        leaf, tokens = by_hand(group=None, share=torch.tensor([0, 0, 0.5, 1, 0, 0, 0]))
        loss = share(build("go", lambda_max=1.0, soft_groups=0.2), tokens, Counts(6, 2, (4.5, 1.5)))
        assert loss.item() == pytest.approx(23 / 3)
        loss.backward()
        torch.testing.assert_close(leaf.grad, torch.tensor([0, 0, 0.5 / 1.5, 1 / 1.5, 0, 0, 0]))

    def test_rho1(self):
        _, tokens = by_hand()
        assert share(build("rho1"), tokens, Counts(6, 2, (4, 2))).item() == pytest.approx(6.5)

    def test_an_empty_group_is_never_the_worst(self):
        for group, sizes, present in (([0] * 7, (6, 0), 0), ([1] * 6 + [0], (0, 6), 1)):
            _, tokens = by_hand(group=group)
            counts = Counts(6, 2, sizes)
            assert int(worst_group(sums_of(build("go"), tokens), counts)) == present
            assert share(build("go"), tokens, counts).item() == pytest.approx(26 / 6)

    def test_equal_means_make_the_important_group_the_worst(self):
        _, tokens = by_hand(loss=[2.0] * 7)
        assert int(worst_group(sums_of(build("go"), tokens), Counts(6, 2, (4, 2)))) == 1

    def test_schedules(self):
        assert [lambda_at(step, 4, 0.8, 0.3) for step in range(4)] == pytest.approx([0.8, 0.6, 0.4, 0.3])
        assert [lambda_at(step, 4, 0.9, 0.9) for step in range(4)] == [0.9] * 4
        cosine = [lambda_at(step, 4, 0.8, 0.2, "cosine") for step in range(5)]
        assert cosine == pytest.approx([0.8, 0.5 + 0.3 * 0.5**0.5, 0.5, 0.5 - 0.3 * 0.5**0.5, 0.2])
        assert [lambda_at(step, 5, 0.8, 0.2, "step") for step in range(5)] == [0.8, 0.8, 0.8, 0.2, 0.2]


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
        assert torch.equal(select_top(score, supervised, document, torch.tensor(chosen)), wanted)


def random_tokens(seed, num_documents=7, num_groups=2, important=0.4, leaf=None, soft=False):
    """Tokens with all that any objective asks for; `leaf` is the vector that the losses are a function of."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 12, num_documents)
    total = int(lengths.sum())
    supervised = torch.tensor(rng.random(total) < 0.8)
    upper = torch.tensor(rng.random(total) < important) * supervised
    group = upper * torch.tensor(rng.integers(1, num_groups, total)) if num_groups > 1 else upper * 0
    loss = torch.tensor(rng.gamma(2.0, 1.0, total), dtype=torch.float32) * supervised
    leaf = loss.clone().requires_grad_() if leaf is None else leaf
    more = {name: torch.tensor(rng.gamma(2.0, 1.0, total), dtype=torch.float32) for name in ("score", "entropy")}
    share = torch.tensor(rng.random(total), dtype=torch.float32) * supervised
    return leaf, Tokens(
        supervised,
        torch.repeat_interleave(torch.arange(num_documents), torch.tensor(lengths)),
        num_documents,
        num_groups,
        leaf * 1.0,
        None if soft else group,
        share if soft else None,
        more["score"] * supervised,
        None,
        more["entropy"] * supervised,
        (leaf * 0.3 + 0.1) * supervised,  # a divergence that is a function of the same leaf
    )


def part(tokens, chosen):
    fields = {f.name: getattr(tokens, f.name) for f in dataclasses.fields(tokens)}
    return Tokens(**{n: v[chosen] if isinstance(v, torch.Tensor) else v for n, v in fields.items()})


FORMS = slow.FORMS
MOMENTS = [Moment(0, 10), Moment(4, 10), Moment(9, 10)]


def test_every_registered_objective_is_checked_here():
    assert {name for name, _ in FORMS} == set(OBJECTIVES)


@pytest.mark.parametrize(("name", "own"), FORMS)
class TestContract:
    def tokens(self, name, own, seed, **more):
        groups = 3 if "group_quantiles" in own else 2
        return random_tokens(seed, num_groups=groups, soft="soft_groups" in own, **more)

    @pytest.mark.parametrize("moment", MOMENTS)
    @pytest.mark.parametrize("important", [0.0, 0.4, 1.0])
    def test_equals_the_slow_reference_and_its_gradient(self, name, own, moment, important):
        objective = build(name, **own)
        leaf, tokens = self.tokens(name, own, 5, important=important)
        counts = counts_of(objective, tokens)
        loss = share(objective, tokens, counts, moment)
        wanted, gradient = slow.value_and_gradient(name, own, tokens, leaf, moment)
        assert loss.item() == pytest.approx(wanted, abs=1e-5)
        assert float(objective.value(sums_of(objective, tokens), counts, moment)) == pytest.approx(wanted, abs=1e-5)
        loss.backward()
        torch.testing.assert_close(leaf.grad.double(), gradient, atol=1e-5, rtol=0)

    def test_shares_of_a_split_step_add_up(self, name, own):
        objective, moment = build(name, **own), Moment(3, 10)
        leaf, whole = self.tokens(name, own, 9)
        counts = counts_of(objective, whole)
        share(objective, whole, counts, moment).backward()
        once, leaf.grad = leaf.grad.clone(), None
        leaf, whole = self.tokens(name, own, 9, leaf=leaf)
        pieces = [part(whole, at) for at in (whole.document < 2, whole.document == 2, whole.document >= 3)]
        total = sums_of(objective, pieces[0])
        added = counts_of(objective, pieces[0])
        for piece in pieces[1:]:
            total, added = total.plus(sums_of(objective, piece)), added.plus(counts_of(objective, piece))
        assert added.flatten() == pytest.approx(counts.flatten())
        decision = decision_of(objective, total, added, moment)
        losses = [objective.loss(piece, added, decision, moment) for piece in pieces]
        sum(losses).backward()
        torch.testing.assert_close(leaf.grad, once, atol=1e-6, rtol=1e-6)
        assert float(objective.value(total, added, moment)) == pytest.approx(sum(losses).item(), abs=1e-5)

    def test_nothing_supervised_gives_a_finite_zero(self, name, own):
        objective = build(name, **own)
        leaf = torch.zeros(4, requires_grad=True)
        zeros, nothing = torch.zeros(4), torch.zeros(4, dtype=torch.bool)
        soft = "soft_groups" in own
        tokens = Tokens(nothing, zeros.long(), 1, 3 if "group_quantiles" in own else 2, leaf * 1.0)
        tokens = dataclasses.replace(tokens, group=None if soft else zeros.long(), share=zeros if soft else None)
        tokens = dataclasses.replace(tokens, score=zeros, entropy=zeros, divergence=leaf * 0.0)
        loss = share(objective, tokens, counts_of(objective, tokens))
        loss.backward()
        assert loss.item() == 0.0
        assert leaf.grad.tolist() == [0.0] * 4

    def test_is_plain_mean_tells_the_truth(self, name, own):
        objective = build(name, **own)
        _, tokens = self.tokens(name, own, 11)
        counts = counts_of(objective, tokens)
        for moment in MOMENTS:
            if objective.is_plain_mean(moment):
                mean = tokens.loss.sum().item() / counts.supervised
                assert share(objective, tokens, counts, moment).item() == pytest.approx(mean, abs=1e-5)

    def test_state_comes_back_from_json(self, name, own):
        import json

        objective, other = build(name, **own), build(name, **own)
        _, tokens = self.tokens(name, own, 3)
        for _ in range(3 if objective.keeps_state else 0):
            objective.advance(sums_of(objective, tokens), counts_of(objective, tokens))
        other.load_state_dict(json.loads(json.dumps(objective.state_dict())))
        assert other.state_dict() == objective.state_dict()
        loss = share(objective, tokens, counts_of(objective, tokens))
        assert share(other, tokens, counts_of(other, tokens)).item() == pytest.approx(loss.item(), abs=1e-7)

    def test_says_what_it_is(self, name, own):
        objective = build(name, **own)
        assert objective.describe()[0][0] == "objective"
        assert objective.describe()[0][1].startswith(name)
        assert objective.settings.problems() == []
        assert objective.summary


def test_a_maximum_per_micro_batch_is_another_number():
    """The trap that the whole-step maximum avoids: the parts' maxima do not add up."""
    loss, supervised, group = torch.tensor([4.0, 0.0, 0.0, 4.0]), torch.ones(4).bool(), torch.tensor([1, 0, 1, 0])
    whole = Tokens(supervised, torch.tensor([0, 0, 1, 1]), 2, 2, loss, group)
    objective = build("go", lambda_max=1.0)
    exact = share(objective, whole, count_tokens(whole))
    parts = []
    for at in (slice(0, 2), slice(2, 4)):
        piece = Tokens(supervised[at], torch.zeros(2, dtype=torch.long), 1, 2, loss[at], group[at])
        parts.append(share(objective, piece, count_tokens(piece)))
    assert exact.item() == 2.0
    assert sum(parts).item() / 2 == 4.0


def test_sums_stack_and_unstack():
    values = torch.tensor([1.0, 2.0, 3.0])
    assert Sums.unstack(values, 2).stack().tolist() == values.tolist()
    assert Sums.unstack(values, 2).own.tolist() == [3.0]


@pytest.mark.parametrize(
    ("name", "own", "word"),
    [
        ("go", {"lambda_max": 1.5}, "--lambda_max"),
        ("go", {"lambda_max": 0.2, "lambda_min": 0.5}, "--lambda_min"),
        ("go", {"select_over": "batch"}, "--select_over"),
        ("go", {"group_quantiles": "0.9,0.5"}, "--group_quantiles"),
        ("go", {"group_quantiles": "0.5,1.0"}, "--group_quantiles"),
        ("go", {"group_quantiles": "half"}, "--group_quantiles"),
        ("go", {"soft_groups": 0.0}, "--soft_groups"),
        ("go", {"soft_groups": 0.2, "worst_over": "sample"}, "--worst_over"),
        ("go", {"soft_groups": 0.2, "dynamic_groups": True}, "--dynamic_groups"),
    ],
)
def test_settings_that_contradict_are_named(name, own, word):
    problems = build(name, **own).settings.problems()
    assert [word in problem for problem in problems] == [True]


def test_default_settings_are_sound():
    for name in OBJECTIVES:
        if name != "cleaned":  # which asks for columns
            assert build(name).settings.problems() == []
