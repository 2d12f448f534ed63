"""Several GPUs and no launcher: one of them, a line about the others, and a model that lies in one place."""

from types import SimpleNamespace

import pytest
import torch

from common.errors import UserError
from tests.train.runs import history, make_config, make_trainer, small_model
from train.loop import models
from train.loop.devices import device_map, one_device


def test_one_device_and_a_line_that_says_how_to_use_the_others(tmp_path):
    args = make_config(tmp_path)
    assert one_device(args) is None  # a CPU
    args._n_gpu = 4  # what transformers counted
    line = one_device(args)
    assert args.n_gpu == 1
    assert args.train_batch_size == args.per_device_train_batch_size
    assert "of 4 GPUs" in line
    assert "--workers 4" in line
    assert "torchrun --nproc-per-node 4" in line
    assert one_device(args) is None  # said once


def test_it_trains(shards, tokenizer, tmp_path, monkeypatch):
    """TRL refuses several GPUs without a launcher; here one is taken."""
    monkeypatch.setattr("transformers.TrainingArguments.n_gpu", property(lambda self: getattr(self, "_n_gpu", 4) or 4))
    trainer = make_trainer(shards, tokenizer, tmp_path, small_model(tokenizer), max_steps=1)
    trainer.train()
    assert trainer.args.n_gpu == 1
    assert len(history(trainer, "loss")) == 1


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_a_model_is_never_spread(device, tokenizer, tmp_path, monkeypatch):
    """TRL loads with device_map auto where there is a GPU and nothing else was said."""
    from trl import ModelConfig

    seen = {}

    def loaded(name, **options):
        seen.update(options)
        return small_model(tokenizer)

    monkeypatch.setattr(models, "create_model_from_path", loaded)
    args = make_config(tmp_path)
    args.__dict__["_setup_devices"] = torch.device(device)
    models.load_model("some/model", tokenizer, args, ModelConfig())
    assert "device_map" in seen
    assert seen["device_map"] is None


def test_by_hand():
    gpu = SimpleNamespace(device=torch.device("cuda", 3))
    assert device_map(gpu, None, is_quantized=False) is None
    assert device_map(gpu, None, is_quantized=True) == {"": 3}  # weights are quantized where they stay
    for spread in ("auto", "balanced", {"model.embed_tokens": 0, "lm_head": 1}):
        with pytest.raises(UserError, match="lays one model over several devices"):
            device_map(gpu, spread, is_quantized=False)
