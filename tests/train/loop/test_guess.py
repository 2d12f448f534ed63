"""The guess of a split step's worst group: what losses are expected, and what a wrong guess costs."""

import pytest
import torch

from tests.train.conftest import COLUMNS, write_shards
from tests.train.runs import history, make_model, make_objective, make_trainer, parameters
from train.data.collate import COUNTS
from train.data.counts import Counts
from train.loop.expected_loss import MEMORY, PRIOR, TokenLosses
from train.loop.step import Step, begin_step
from train.objectives.base import Moment
from train.objectives.tokens import Sums

CPU = torch.device("cpu")
SPLIT = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "max_steps": 6}


def sums(important, unimportant):
    return Sums(torch.tensor([unimportant, important], dtype=torch.float64), torch.zeros(0, dtype=torch.float64))


@pytest.fixture(scope="module")
def uneven(tmp_path_factory, tokenizer):
    return write_shards(tmp_path_factory.mktemp("uneven") / "shards", tokenizer, 22, COLUMNS, seed=4)


class TestExpectedLosses:
    def test_by_hand(self):
        losses = TokenLosses(4, CPU)
        assert losses.expected(torch.tensor([0, 3])).tolist() == [1.0, 1.0]  # nothing is known: all alike
        losses.learn(torch.tensor([1, 2, 1]), torch.tensor([2.0, 6.0, 4.0]), torch.tensor([True] * 3))
        mean = (12 + 1) / (3 + 1)
        expected = [mean, (6 + PRIOR * mean) / (2 + PRIOR), (6 + PRIOR * mean) / (1 + PRIOR)]
        assert losses.expected(torch.tensor([3, 1, 2])).tolist() == pytest.approx(expected)

    def test_what_is_not_trained_on_or_not_finite_teaches_nothing(self):
        losses = TokenLosses(3, CPU)
        values = torch.tensor([5.0, float("nan"), float("inf"), 2.0])
        losses.learn(torch.tensor([0, 0, 1, 2]), values, torch.tensor([False, True, True, True]))
        assert losses.total.tolist() == [0, 0, 2]
        assert losses.count.tolist() == [0, 0, 1]

    def test_older_losses_count_less(self):
        losses = TokenLosses(2, CPU)
        for value in (8.0, 2.0):
            losses.fade()
            losses.learn(torch.tensor([0]), torch.tensor([value]), torch.tensor([True]))
        assert losses.total[0].item() == pytest.approx(8 * MEMORY + 2)
        assert losses.count[0].item() == pytest.approx(MEMORY + 1)

    def test_state(self):
        some, other = TokenLosses(2, CPU), TokenLosses(2, CPU)
        some.learn(torch.tensor([0, 1]), torch.tensor([3.0, 1.0]), torch.tensor([True, True]))
        other.load_state_dict(some.state_dict())
        assert torch.equal(other.expected(torch.tensor([0, 1])), some.expected(torch.tensor([0, 1])))


class TestGuess:
    def test_by_hand(self):
        """Two micro-batches of 2 important and 4 unimportant tokens in all."""
        expected = [sums(2, 8), sums(3, 5)]
        step = Step(make_objective(), [None, None], Counts(6, 2, (4, 2)), Moment(), expected, sums(5, 13))
        assert int(step.guess()) == 0  # 5 / 2 against 13 / 4
        step.sums.append(sums(2, 6))
        assert int(step.guess()) == 0  # (2 + 3) / 2 against (6 + 5) / 4
        step.sums[0] = sums(2, 4)
        assert int(step.guess()) == 1  # (2 + 3) / 2 against (4 + 5) / 4

    def test_an_empty_group_is_never_guessed(self):
        assert (
            int(Step(make_objective(), [None], Counts(6, 2, (6, 0)), Moment(), [sums(0, 0)], sums(0, 0)).guess()) == 0
        )
        assert (
            int(Step(make_objective(), [None], Counts(6, 2, (0, 6)), Moment(), [sums(0, 0)], sums(0, 0)).guess()) == 1
        )

    def test_other_ranks_expectations_count(self):
        """What one rank sees is replaced; what another one expects stays."""

        def reduce(values):  # a second rank with 4 tokens, 2 of them important, that expects 20 and 2 nats
            return values + torch.tensor([4, 1, 2, 2, 1, 2, 20], dtype=torch.float64)

        step = begin_step(make_objective(), [None], [Counts(4, 1, (2, 2))], Moment(), [sums(2, 4)], 2, reduce, CPU)
        assert step.counts == Counts(8, 2, (4, 4))
        assert int(step.guess()) == 1
        step.sums.append(sums(2, 30))
        assert int(step.guess()) == 0  # 22 / 4 against 32 / 4

    @pytest.mark.parametrize("dynamic", [False, True])
    def test_expected_sums_are_over_the_groups_of_the_micro_batch(self, dynamic, uneven, tokenizer, tmp_path):
        changes = {"dynamic_groups": True, "grouper": "reference"} if dynamic else {"grouper": "first"}
        trainer = make_trainer(uneven, tokenizer, tmp_path, **changes, **SPLIT)
        trainer.run_state.token_losses.count += 1e6
        trainer.run_state.token_losses.total += 3e6  # every token costs 3 nats
        batches, _ = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 4, CPU)
        for batch, expected in zip(batches, trainer._step.expected, strict=True):
            counts = Counts(*batch[COUNTS])
            assert float(expected.groups[1]) == pytest.approx(3 * counts.groups[1], rel=1e-5)
            assert float(expected.groups[0]) == pytest.approx(3 * counts.groups[0], rel=1e-5)

    def test_learned_losses_guess_better_than_chance(self, uneven, tokenizer, tmp_path):
        """The same 22 documents again and again: after some epochs little is left to be learned."""
        settings = {**SPLIT, "max_steps": 45, "learning_rate": 0.0, "grouper": "first", "eta": 0.5}
        trainer = make_trainer(uneven, tokenizer, tmp_path, **settings)
        trainer.train()
        assert len(set(history(trainer, "worst_group"))) == 2
        redone = history(trainer, "redone_steps")
        assert redone[-1] - redone[14] < 15  # of 30; chance would redo all but an eighth


class TestCost:
    @pytest.mark.parametrize("guess", [0, 1])
    def test_a_wrong_guess_costs_one_pass_for_each_wrong_micro_batch(
        self, guess, uneven, tokenizer, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(Step, "guess", lambda self: torch.tensor(guess))
        model, passes = make_model(tokenizer), []
        trainer = make_trainer(uneven, tokenizer, tmp_path, model, grouper="first", **SPLIT)
        model.model.register_forward_hook(lambda *_: passes.append(model.training))
        trainer.train()
        micro_batches = 2 * (4 + 4 + 3)  # 22 documents, two epochs
        assert trainer.redone.num_redone_batches > 0
        assert sum(passes) == micro_batches + trainer.redone.num_redone_batches

    def test_what_is_drawn_after_a_redone_step_is_the_same(self, uneven, tokenizer, tmp_path, monkeypatch):
        drawn = []
        for guess in (0, 1):
            monkeypatch.setattr(Step, "guess", lambda self, guess=guess: torch.tensor(guess))
            trainer = make_trainer(uneven, tokenizer, tmp_path / str(guess), grouper="first", **SPLIT)
            trainer.train()
            drawn.append((torch.rand(3), parameters(trainer)))
        assert torch.equal(drawn[0][0], drawn[1][0])
        torch.testing.assert_close(drawn[0][1], drawn[1][1], atol=1e-5, rtol=0)
