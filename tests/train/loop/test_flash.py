"""FlashAttention with rows of several documents: checked as the step will run, and trained, on a stand-in kernel."""

import pytest
import torch

from common.errors import UserError
from tests.train import flash
from tests.train.runs import history, make_trainer, small_model

ROWS = {"padding_free": {"padding_free": True}, "packed": {"packing": True, "max_length": 64}}


@pytest.fixture(params=flash.NAMES)
def attention(request, monkeypatch):
    return flash.install(monkeypatch, request.param)


def flash_model(tokenizer, attention):
    """A float32 checkpoint, as every one is loaded unless --dtype says otherwise."""
    model = small_model(tokenizer)
    model.set_attn_implementation(attention)
    assert model.dtype == torch.float32
    return model


@pytest.mark.parametrize("rows", ROWS)
def test_a_float32_checkpoint_trains_under_autocast(rows, attention, shards, tokenizer, tmp_path):
    model = flash_model(tokenizer, attention)
    settings = {"bf16": True, "max_steps": 3, **ROWS[rows]}
    trainer = make_trainer(shards, tokenizer, tmp_path / "flash", model, **settings)  # checks isolation
    trainer.train()
    plain = make_trainer(shards, tokenizer, tmp_path / "plain", small_model(tokenizer), **settings)
    plain.train()
    assert history(trainer, "loss_all") == pytest.approx(history(plain, "loss_all"), abs=0.02)  # bfloat16


def test_without_half_precision_the_flag_is_named(attention, shards, tokenizer, tmp_path):
    with pytest.raises(UserError, match=rf"--attn_implementation {attention}: .*--bf16 true"):
        make_trainer(shards, tokenizer, tmp_path, flash_model(tokenizer, attention), padding_free=True)


@pytest.mark.parametrize("rows", ROWS)
def test_a_kernel_that_is_not_told_the_boundaries_is_refused(rows, attention, shards, tokenizer, tmp_path, monkeypatch):
    whole = flash.flash_attn_varlen_func

    def leaking(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, **options):
        edges = torch.tensor([0, len(q)], dtype=torch.int32)
        return whole(q, k, v, edges, edges, len(q), len(k), **options)

    monkeypatch.setattr(flash, "flash_attn_varlen_func", leaking)
    flash.install(monkeypatch, attention)
    with pytest.raises(UserError, match="documents in one row see each other"):
        make_trainer(shards, tokenizer, tmp_path, flash_model(tokenizer, attention), bf16=True, **ROWS[rows])
