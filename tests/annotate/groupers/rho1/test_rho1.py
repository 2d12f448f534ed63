"""rho1: values against hand-computed numbers and an independent slow reference; what must not change them."""

import pickle

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import annotate.groupers.rho1.reference_loss
from annotate.groupers import grouper_class
from annotate.groupers.base import GrouperOptions
from annotate.groupers.rho1.grouper import Rho1
from annotate.groupers.rho1.reference_loss import ReferenceModel
from annotate.groupers.rho1.reference_loss import _filled as fill
from annotate.models.planning import ROWS
from common.tokenizers import tokenizer_fingerprint
from tests.annotate.groupers.rho1.rho1_models import (
    CONFIGS,
    VOCABULARY,
    make_batch,
    make_model,
    make_tokenizer,
    random_documents,
    save_checkpoint,
    slow_losses,
)


def build(reference: str, **options) -> Rho1:
    """Return the grouper on the CPU."""
    return Rho1.from_options(GrouperOptions(reference_model=reference, device="cpu", **options))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, str]:
    """One random-weight checkpoint of each architecture; "other" is Llama with other weights."""
    root = tmp_path_factory.mktemp("checkpoints")
    saved = {kind: save_checkpoint(root / kind, kind) for kind in CONFIGS}
    return {**saved, "other": save_checkpoint(root / "other", "llama", seed=7)}


def test_a_hand_computed_loss(tmp_path):
    """With the head at zero every token has probability 1/V; with one logit at ln 3 the softmax is known too."""
    model = make_model("llama", vocabulary=5)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    model.save_pretrained(tmp_path)
    make_tokenizer(5).save_pretrained(tmp_path)
    scores = build(str(tmp_path)).score(make_batch([[1, 2, 3], [4], [0, 0]]))
    expected = np.array([0, np.log(5), np.log(5), 0, 0, np.log(5)], dtype=np.float32)
    np.testing.assert_allclose(scores.columns["rho1"], expected, rtol=0, atol=1e-6)
    assert scores.columns["rho1"].dtype == np.float32

    with torch.no_grad():  # a head row of h · ln 3 / |h|² gives its token the logit ln 3, the others stay at 0
        hidden = model.model(input_ids=torch.tensor([[1, 2]])).last_hidden_state[0, 1]
        model.lm_head.weight[2] = hidden * np.log(3) / hidden.square().sum()
    model.save_pretrained(tmp_path)
    values = build(str(tmp_path)).score(make_batch([[1, 2, 2], [1, 2, 0]])).columns["rho1"]
    # p(2) = 3 / (3 + 4), p(0) = 1 / (3 + 4)
    np.testing.assert_allclose(values[[2, 5]], [np.log(7 / 3), np.log(7)], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_equals_cross_entropy_over_full_logits(checkpoints, kind, monkeypatch):
    """Also with a head that is taken in chunks of 32 tokens, and for scaled and soft-capped logits."""
    documents = random_documents(40, seed=1)
    expected = slow_losses(AutoModelForCausalLM.from_pretrained(checkpoints[kind], dtype=torch.float32), documents)
    assert expected.std() > 0.5  # losses that are all alike would show nothing
    for chunk in (2**23, 20 * VOCABULARY):
        monkeypatch.setitem(annotate.groupers.rho1.reference_loss.LOGITS_PER_CHUNK, "cpu", chunk)
        scores = build(checkpoints[kind], batch_tokens=128).score(make_batch(documents))
        np.testing.assert_allclose(scores.columns["rho1"], expected, rtol=0, atol=1e-5)
    assert not scores.rejects


@pytest.mark.parametrize("kind", ["llama", "qwen2", "mamba"])
def test_budget_and_order_change_nothing(checkpoints, kind):
    documents = random_documents(30, seed=2)
    expected = build(checkpoints[kind]).score(make_batch(documents)).columns["rho1"]
    pieces = np.split(expected, np.cumsum([len(ids) for ids in documents])[:-1])
    for budget in (1, 50, 100_000):
        order = np.random.default_rng(budget).permutation(len(documents))
        scores = build(checkpoints[kind], batch_tokens=budget).score(make_batch([documents[i] for i in order]))
        wanted = np.concatenate([pieces[i] for i in order])
        np.testing.assert_allclose(scores.columns["rho1"], wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "mamba"])
def test_documents_do_not_see_each_other(checkpoints, kind):
    """Every neighbour in the batch changes, in content and in length; the document's losses stay."""
    own = [3, 1, 4, 1, 5, 9, 2, 6, 5, 35]
    grouper = build(checkpoints[kind], batch_tokens=10_000)
    seen = []
    for seed in (4, 5):
        batch = make_batch([*random_documents(3, seed), own, *random_documents(3, seed + 10)])
        seen.append(grouper.score(batch).columns["rho1"][batch.tokens_of(3)])
    np.testing.assert_allclose(seen[0], seen[1], rtol=0, atol=1e-6)


def test_a_token_depends_on_its_whole_prefix_and_on_nothing_after_it(checkpoints):
    grouper = build(checkpoints["llama"])
    base, late, early = [1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 9, 6], [8, 2, 3, 4, 5, 6]
    values = [grouper.score(make_batch([ids])).columns["rho1"] for ids in (base, late, early)]
    np.testing.assert_allclose(values[0][:4], values[1][:4], rtol=0, atol=1e-5)
    assert (np.abs(values[0] - values[1])[4:] > 1e-3).all()
    assert (np.abs(values[0] - values[2])[1:] > 1e-3).all()


def test_excess_is_base_minus_reference(checkpoints):
    documents = random_documents(10, seed=6)
    grouper = build(checkpoints["llama"], base_model=checkpoints["other"])
    assert grouper.columns == {"rho1": "reference_loss", "rho1_excess": "importance"}
    scores = grouper.score(make_batch(documents))
    base, reference = (
        slow_losses(AutoModelForCausalLM.from_pretrained(checkpoints[name], dtype=torch.float32), documents)
        for name in ("other", "llama")
    )
    np.testing.assert_allclose(scores.columns["rho1"], reference, rtol=0, atol=1e-5)
    np.testing.assert_allclose(scores.columns["rho1_excess"], base - reference, rtol=0, atol=2e-5)
    assert build(checkpoints["llama"]).columns == {"rho1": "reference_loss"}


def test_bfloat16_stays_near_float32(checkpoints):
    """bfloat16 keeps 8 bits: the mean moves little, and the log-sum-exp is still float32."""
    batch = make_batch(random_documents(40, seed=8))
    exact = build(checkpoints["llama"]).score(batch).columns["rho1"]
    rough = build(checkpoints["llama"], dtype="bfloat16").score(batch).columns["rho1"]
    assert rough.dtype == np.float32
    assert 0 < np.abs(rough - exact).mean() < 0.02 * exact.mean()


def test_full_logits_never_exist(checkpoints, monkeypatch):
    """The head never sees more tokens than a chunk holds, and every predicted token once; the last chunk is filled."""
    monkeypatch.setitem(annotate.groupers.rho1.reference_loss.LOGITS_PER_CHUNK, "cpu", 70 * VOCABULARY)
    model = ReferenceModel(checkpoints["llama"], "--reference-model", None, "float32", "cpu")
    rows, filled = [], []
    model.head.register_forward_hook(lambda module, args, output: rows.append(args[0].shape[0]))
    monkeypatch.setattr(
        annotate.groupers.rho1.reference_loss, "_filled", lambda hidden: filled.append(len(hidden)) or fill(hidden)
    )
    batch = make_batch(random_documents(20, seed=9))
    model.losses(batch.input_ids, batch.offsets, np.arange(len(batch)), 200)
    assert sum(filled) == batch.num_tokens - len(batch)
    assert max(rows) == 64  # 70, rounded down to a multiple of 32
    assert rows == [-(-number // ROWS) * ROWS for number in filled]
    assert any(number % ROWS for number in filled)


def test_report_counts_predicted_supervised_tokens_of_kept_documents(checkpoints):
    documents = [[5, 6, 7, 8], [9, 10], [1] * 65]  # the last has more tokens than the model has positions
    supervised = [[False, False, True, True], [True, True], [True] * 65]
    grouper = build(checkpoints["llama"], base_model=checkpoints["other"])
    scores = grouper.score(make_batch(documents, supervised))
    report = grouper.report(scores.counters)
    mean = np.mean(scores.columns["rho1"][[2, 3, 5]], dtype=np.float64)
    assert scores.counters["scored_tokens"] == 3
    assert report["mean_reference_loss"] == pytest.approx(mean, abs=1e-6)
    assert report["reference_perplexity"] == pytest.approx(np.exp(mean), rel=1e-6)
    excess = np.mean(scores.columns["rho1_excess"][[2, 3, 5]], dtype=np.float64)
    assert report["mean_base_loss"] == pytest.approx(mean + excess, abs=1e-5)
    assert report["rejected_documents"] == 1
    assert report["dtype"] == "float32"
    assert build(checkpoints["llama"]).report({})["mean_reference_loss"] is None


def test_the_registry_a_pickle_and_parameters_give_the_same_grouper(checkpoints):
    batch = make_batch(random_documents(5))
    fingerprint = tokenizer_fingerprint(make_tokenizer())
    options = GrouperOptions(reference_model=checkpoints["llama"], tokenizer_fingerprint=fingerprint, device="cpu")
    grouper = grouper_class("rho1").from_options(options)
    expected = grouper.score(batch).columns["rho1"]
    travelled = pickle.loads(pickle.dumps(grouper))
    assert not travelled._models
    rebuilt = Rho1.from_parameters(grouper.parameters, GrouperOptions(device="cpu"))
    assert rebuilt.parameters == travelled.parameters == grouper.parameters
    for other in (travelled, rebuilt):
        np.testing.assert_array_equal(other.score(batch).columns["rho1"], expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_equals_cpu_in_float32(checkpoints):
    batch = make_batch(random_documents(40, seed=1))
    expected = build(checkpoints["llama"]).score(batch).columns["rho1"]
    options = GrouperOptions(reference_model=checkpoints["llama"], device="cuda", dtype="float32")
    np.testing.assert_allclose(Rho1.from_options(options).score(batch).columns["rho1"], expected, rtol=0, atol=1e-4)
    assert Rho1.from_options(GrouperOptions(reference_model=checkpoints["llama"], device="cuda")).dtype == "bfloat16"
