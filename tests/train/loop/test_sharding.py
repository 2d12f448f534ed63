"""FSDP2 in bfloat16 on two processes: parameters are rounded, losses and sums of gradients are not."""

import pytest
import torch

from tests.train import ranks
from tests.train.conftest import COLUMNS, write_shards
from tests.train.runs import history, make_trainer, small_model

STEPS = 3
SETTINGS = {
    "bf16": True,
    "optim": "sgd",
    "learning_rate": 0.05,
    "weight_decay": 0.0,
    "max_grad_norm": 0.0,
    "max_steps": STEPS,
    "grouper": "first",
    "objective": "go",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory, tokenizer):
    place = tmp_path_factory.mktemp("sharding")
    shards = write_shards(place / "shards", tokenizer, 24, COLUMNS, seed=3)
    job = {**SETTINGS, "shards": shards, "per_device_train_batch_size": 4, "fsdp": True}
    ranks.launch(place / "fsdp", {"bf16": job}, fsdp=True)
    return place


@pytest.mark.slow
class TestHalfPrecision:
    def test_what_is_rounded(self, place):
        run = ranks.load(place / "fsdp", "bf16")
        assert run["wrapped"].startswith("FSDP")
        assert run["dtypes"]["gathered"] == ["torch.bfloat16"]  # parameters compute in it
        assert run["dtypes"]["log_probs"] == ["torch.float32"]
        assert run["dtypes"]["reduced"] == ["torch.float32"]

    def test_the_loss_is_that_of_one_process(self, place, tokenizer, tmp_path):
        alone = make_trainer(
            place / "shards",
            tokenizer,
            tmp_path,
            small_model(tokenizer),
            per_device_train_batch_size=8,
            **SETTINGS,
        )
        alone.train()
        found = [entry for entry in ranks.load(place / "fsdp", "bf16")["history"] if "loss_all" in entry]
        for name in ("loss_all", "loss_important", "loss_unimportant", "loss"):
            assert found[0][name] == pytest.approx(history(alone, name)[0], abs=1e-4), name

    def test_the_parameters_stay_float32(self, place):
        parameters = ranks.load(place / "fsdp", "bf16")["parameters"]
        assert {value.dtype for value in parameters.values()} == {torch.float32}
