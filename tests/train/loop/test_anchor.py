"""The divergence from the base model: equal to full logits of both, with adapters and with a frozen copy."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from tests.train.runs import make_config, make_model, make_objective, trainer_over
from train.data.collate import EXTRA_KEYS
from train.loop import anchor


@pytest.mark.parametrize("rows_per_chunk", [1000, 3])
@pytest.mark.parametrize("adapter", [False, True])
def test_equals_full_logits(adapter, rows_per_chunk, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(anchor, "LOGITS_PER_CHUNK", rows_per_chunk * len(tokenizer))
    rng = np.random.default_rng(0)
    ids = [rng.integers(2, 200, length).tolist() for length in (12, 7, 12, 9)]
    masks = [[False] * 3 + [True] * (len(row) - 3) for row in ids]
    rows = Dataset.from_dict({"input_ids": ids, "supervised": masks}).with_format("numpy")
    args = make_config(tmp_path, objective="asft", max_steps=3, per_device_train_batch_size=4, learning_rate=0.02)
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM") if adapter else None
    objective = make_objective("asft", {"anchor_weight": 0.5})
    trainer = trainer_over(rows, make_model(tokenizer), args, tokenizer, objective=objective, peft_config=lora)
    trainer.train()
    base, model = make_model(tokenizer), trainer.model.eval()
    batch = next(iter(trainer.get_train_dataloader()))
    inputs = {name: value for name, value in batch.items() if name not in EXTRA_KEYS}
    mask = batch["labels"][:, 1:] != -100
    with torch.no_grad():
        given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        before, after = (m(**given).logits[:, :-1].double().log_softmax(dim=-1) for m in (base, model))
        wanted = (before.exp() * (before - after)).sum(dim=-1)
    with trainer.anchor.recording():
        outputs = model(**inputs, use_cache=False, fused_lm_head=True)
    found = trainer.anchor.divergence(inputs, outputs.label_mask)
    torch.testing.assert_close(found[mask].double(), wanted[mask], atol=1e-5, rtol=0)
    assert wanted[mask].mean() > 1e-3
    assert not found[~mask].any()
    moving = {name for name, value in model.named_parameters() if value.requires_grad}
    assert all(("lora" in name) == adapter for name in moving)
