"""A reference model that is the trained model itself is said once, and no other."""

import numpy as np
import pytest
import torch

from tests.train.conftest import write_shards
from tests.train.runs import make_trainer, small_model

STEPS = {"max_steps": 2, "per_device_train_batch_size": 4, "objective": "rho1", "grouper": "reference", "eta": 0.5}


def documents_with_losses(model, tokenizer, shift):
    """Return documents whose reference losses are the model's own cross-entropies, in plain torch, plus a shift."""
    rng, documents = np.random.default_rng(0), []
    for length in rng.integers(8, 30, 12):
        ids = rng.integers(2, len(tokenizer), length).tolist()
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, :-1].double()
        losses = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
        column = [0.0, *(losses + shift).tolist()]
        documents.append({"input_ids": ids, "supervised": [False, *[True] * (len(ids) - 1)], "reference": column})
    return documents


@pytest.mark.parametrize("shift", [0.0, 0.1])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_the_models_own_losses_are_named(shift, accumulated, tokenizer, tmp_path, capsys):
    model = small_model(tokenizer).eval()
    documents = documents_with_losses(model, tokenizer, shift)
    shards = write_shards(tmp_path / "shards", tokenizer, columns={"reference": "reference_loss"}, documents=documents)
    steps = {**STEPS, "gradient_accumulation_steps": accumulated}
    make_trainer(shards, tokenizer, tmp_path / "run", model, **steps).train()
    said = capsys.readouterr().out
    assert said.count("the reference losses are those of the model itself") == (shift == 0.0)


def test_groups_that_are_fixed_are_not_checked(all_shards, tokenizer, tmp_path):
    settings = {**STEPS, "objective": "go", "grouper": "first"}
    trainer = make_trainer(all_shards, tokenizer, tmp_path, small_model(tokenizer), **settings)
    assert trainer.reference_check is None
