"""entropy: hand-computed values, and full logits in float64."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import annotate.groupers.rho1.reference_loss
from annotate.groupers.base import GrouperOptions
from annotate.groupers.entropy import Entropy
from tests.annotate.groupers.rho1.rho1_models import (
    CONFIGS,
    VOCABULARY,
    make_batch,
    make_model,
    make_tokenizer,
    random_documents,
    save_checkpoint,
)


def score(checkpoint, documents, supervised=None, **options):
    grouper = Entropy.from_options(GrouperOptions(reference_model=str(checkpoint), device="cpu", **options))
    return grouper, grouper.score(make_batch(documents, supervised))


def slow_entropies(checkpoint: str, documents: list[list[int]]) -> np.ndarray:
    """One document at a time, full logits of the model in float64, the definition."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float64)
    values = []
    with torch.no_grad():
        for document in documents:
            log_p = torch.log_softmax(model(input_ids=torch.tensor([document]), use_cache=False).logits[0, :-1], dim=-1)
            values.append(torch.cat([torch.zeros(1, dtype=torch.float64), -(log_p.exp() * log_p).sum(dim=-1)]))
    return torch.cat(values).numpy()


def test_by_hand(tmp_path):
    """A head of zeros makes all of five tokens equally likely; one logit at ln 3 gives 3/7 and four times 1/7."""
    model = make_model("llama", vocabulary=5)
    with torch.no_grad():
        hidden = model.model(input_ids=torch.tensor([[1, 2]])).last_hidden_state[0, 1]
        model.lm_head.weight.zero_()
        model.lm_head.weight[2] = hidden * np.log(3) / hidden.square().sum()
    model.save_pretrained(tmp_path)
    make_tokenizer(5).save_pretrained(tmp_path)
    _, found = score(tmp_path, [[1, 2, 0], [4]])
    assert found.columns["entropy"][2] == pytest.approx(3 / 7 * np.log(7 / 3) + 4 / 7 * np.log(7), abs=1e-6)
    assert found.columns["entropy"][[0, 3]].tolist() == [0, 0]
    with torch.no_grad():
        model.lm_head.weight.zero_()
    model.save_pretrained(tmp_path)
    assert score(tmp_path, [[1, 2, 0]])[1].columns["entropy"].tolist() == pytest.approx([0, np.log(5), np.log(5)])


@pytest.mark.parametrize("kind", ["llama", "gemma2", "granite", "gpt2", "mamba"])
def test_equals_full_logits_in_float64(tmp_path, kind, monkeypatch):
    assert kind in CONFIGS
    checkpoint, documents = save_checkpoint(tmp_path, kind), random_documents(30, seed=1)
    expected = slow_entropies(checkpoint, documents)
    assert expected.std() > 0.1
    for chunk in (2**23, 20 * VOCABULARY):
        monkeypatch.setitem(annotate.groupers.rho1.reference_loss.LOGITS_PER_CHUNK, "cpu", chunk)
        found = score(checkpoint, documents, batch_tokens=128)[1].columns["entropy"]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_sure_and_impossible_tokens():
    """A token that takes all leaves no entropy; tokens at minus infinity add none; NaN stays NaN."""
    rows = torch.tensor([[5e4, 0.0, -1.0], [0.0, 0.0, -torch.inf], [0.0, torch.nan, 0.0], [torch.inf, 0.0, 0.0]])
    found = annotate.groupers.rho1.reference_loss._entropy(rows, None)
    assert found[:2].tolist() == pytest.approx([0, np.log(2)], abs=1e-7)
    assert found[2:].isnan().all()


def test_the_report_is_about_supervised_tokens(tmp_path):
    checkpoint = save_checkpoint(tmp_path)
    grouper, found = score(checkpoint, [[5, 6, 7], [8, 9]], [[False, False, True], [True, True]])
    expected = np.mean(found.columns["entropy"][[2, 4]], dtype=np.float64)
    assert grouper.report(found.counters)["mean_entropy"] == pytest.approx(expected, abs=1e-6)
    assert grouper.report({})["mean_entropy"] is None
