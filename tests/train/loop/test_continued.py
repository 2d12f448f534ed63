"""Every objective beside those of `test_resume.py`: continued in its middle, it is the run that was left alone.

What an objective carries from step to step is in the checkpoint: group weights, the base model's place, expected
losses; the schedule goes on where it stood.
"""

import pytest

from tests.train.loop.test_exactness import OTHERS, PLAIN, max_difference, sparse_shards, split
from tests.train.runs import history, make_trainer, small_model

FORMS = {**OTHERS, "go cosine": {"objective": "go", "lambda_max": 0.9, "lambda_min": 0.1, "lambda_schedule": "cosine"}}
METRICS = ("loss", "loss_all", "loss_important", "worst_group", "lambda", "q_1", "grad_norm", "redone_steps")
STEPS, STOP = 6, 3


@pytest.fixture(scope="module")
def shards(tmp_path_factory, tokenizer):
    return sparse_shards(tmp_path_factory.mktemp("continued") / "shards", tokenizer, 21)


def trainer_of(form, shards, tokenizer, output):
    """Return a trainer of two epochs of three steps, accumulated, with a checkpoint at the end of the first."""
    settings = {**PLAIN, **FORMS[form], **split(4, 2), "max_steps": STEPS}
    return make_trainer(
        shards, tokenizer, output, small_model(tokenizer), save_strategy="steps", save_steps=STOP, **settings
    )


@pytest.mark.parametrize("form", FORMS)
def test_is_the_run_left_alone(form, shards, tokenizer, tmp_path):
    whole = trainer_of(form, shards, tokenizer, tmp_path)
    whole.train()
    resumed = trainer_of(form, shards, tokenizer, tmp_path)
    fed = []
    fetch = resumed.get_batch_samples
    resumed.get_batch_samples = lambda *arguments: fed.append(1) or fetch(*arguments)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{STOP}"))
    assert len(fed) == STEPS - STOP
    assert max_difference(resumed.model.state_dict(), whole.model.state_dict()) < 1e-6
    for name in METRICS:
        assert history(resumed, name) == pytest.approx(history(whole, name), abs=1e-6), name
    for name, value in whole.objective.state_dict().items():
        assert resumed.objective.state_dict()[name] == pytest.approx(value, abs=1e-6)


def test_dros_weights_are_carried(shards, tokenizer, tmp_path, monkeypatch):
    """The control: without its state, dro goes on as another run."""
    whole = trainer_of("dro", shards, tokenizer, tmp_path)
    whole.train()
    resumed = trainer_of("dro", shards, tokenizer, tmp_path)
    monkeypatch.setattr(type(resumed.objective), "load_state_dict", lambda self, state: None)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{STOP}"))
    assert max_difference(resumed.model.state_dict(), whole.model.state_dict()) > 1e-4
