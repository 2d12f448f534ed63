"""The promise of the registry: a class and a line give an objective its flag, help, refusals, exactness, curves."""

import json

import pytest

from common.errors import UserError
from tests.train import ranks
from tests.train.conftest import write_shards
from tests.train.objectives import own
from tests.train.runs import history, make_trainer, parameters, small_model
from train.cli import main, run_help
from train.objectives import OBJECTIVES
from train.run import configure

PLAIN = {"optim": "sgd", "learning_rate": 0.05, "weight_decay": 0.0, "max_grad_norm": 0.0, "max_steps": 6}


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(OBJECTIVES, own.Own.name, own.Own)


@pytest.fixture(scope="module")
def place(tmp_path_factory, tokenizer):
    return write_shards(tmp_path_factory.mktemp("own") / "shards", tokenizer, 16)


def train(place, tokenizer, output, batch, accumulated, **changes):
    split = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulated}
    settings = {"objective": "own", "own_power": 2.0, **PLAIN, **split, **changes}
    trainer = make_trainer(place, tokenizer, output, small_model(tokenizer), **settings)
    trainer.train()
    return trainer


@pytest.mark.usefixtures("registered")
class TestOwnObjective:
    def test_its_flag_is_in_the_help(self):
        text = run_help()
        assert "own: the mean loss times a power of the step's own mean loss. nobody 2026." in text
        assert "--own_power" in text

    def test_wrong_values_and_wrong_objectives_are_refused(self):
        words = ["--shards", "nowhere", "--use_cpu", "--objective"]
        assert configure([*words, "own", "--own_power", "3"]).objective.settings.own_power == 3
        with pytest.raises(UserError, match="--own_power: expected a number of at least 0, found -1"):
            configure([*words, "own", "--own_power", "-1"])
        with pytest.raises(UserError, match=r"--own_power: objective sft has no such setting \(own has\)"):
            configure([*words, "sft", "--own_power", "1"])
        with pytest.raises(UserError, match="would bypass objective own"):
            configure([*words, "own", "--label_smoothing_factor", "0.1"])

    def test_a_file_sets_it_too(self, tmp_path):
        (tmp_path / "run.yaml").write_text("objective: own\nown_power: 0.5\n")
        words = ["--shards", "nowhere", "--use_cpu", "--config", str(tmp_path / "run.yaml")]
        assert configure(words).objective.settings.own_power == 0.5

    def test_is_exact_over_accumulation(self, place, tokenizer, tmp_path):
        whole = train(place, tokenizer, tmp_path / "8", 8, 1)
        single = train(place, tokenizer, tmp_path / "1", 1, 8)
        assert (parameters(whole) - parameters(single)).abs().max() < 1e-5
        assert history(single, "loss") == pytest.approx(history(whole, "loss"), abs=1e-4)
        assert single.redone.num_redone_steps == 6  # no guess meets a number
        moved = (parameters(whole) - parameters(train(place, tokenizer, tmp_path / "0", 8, 1, learning_rate=0.0))).abs()
        assert moved.max() > 0.05

    def test_logs_its_own_value_and_the_curves(self, place, tokenizer, tmp_path):
        trainer = train(place, tokenizer, tmp_path, 4, 2, eval_fraction=0.25, per_device_eval_batch_size=1)
        mean = history(trainer, "loss_all")
        assert history(trainer, "loss") == pytest.approx([value**3 for value in mean], rel=1e-4)
        assert len(history(trainer, "loss_important")) == len(mean)
        found = trainer.evaluate()
        assert found["eval_loss"] == pytest.approx(found["eval_loss_all"] ** 3, rel=1e-5)

    def test_the_command_records_it(self, place, tmp_path, capsys):
        words = ["--objective", "own", "--own_power", "0.5", "--max_steps", "2", "--save_strategy", "no", "--use_cpu"]
        with pytest.raises(SystemExit) as stop:
            main(["run", "--shards", str(place), "--output_dir", str(tmp_path / "out"), *words])
        assert stop.value.code == 0
        content = json.loads((tmp_path / "out" / "run.json").read_text())
        assert content["objective"]["own_power"] == 0.5
        assert content["objective"]["objective"] == "own"
        assert "for the curves only, the objective is own" in capsys.readouterr().out


@pytest.mark.slow
def test_is_exact_over_two_ranks(place, tokenizer, tmp_path, registered):
    split = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    run = {"shards": place, "objective": "own", "own_power": 2.0, "eta": 0.7, **PLAIN, **split}
    ranks.launch(tmp_path / "job", {"own": run}, modules=["tests.train.objectives.own"])
    result = ranks.load(tmp_path / "job", "own")
    alone = train(place, tokenizer, tmp_path / "alone", 8, 1)
    differences = [(value - result["parameters"][name]).abs().max() for name, value in alone.model.state_dict().items()]
    assert max(differences) < 1e-5
    losses = [entry["loss"] for entry in result["history"] if "loss" in entry]
    assert losses == pytest.approx(history(alone, "loss"), abs=1e-4)
