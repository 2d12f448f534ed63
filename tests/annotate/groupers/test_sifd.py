"""sifd: full logits in float64, with the prompt and without it; what stands before a response alone."""

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM

from annotate.groupers.base import GrouperOptions
from annotate.groupers.sifd import SelectiveIfd
from tests.annotate.groupers.rho1.rho1_models import make_batch, make_tokenizer, random_documents, save_checkpoint

BEGIN = 7  # the token that the tokenizers with a prefix put first


def tokenizer_with_prefix():
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"bos_token": f"w{BEGIN}"})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"w{BEGIN} $A", special_tokens=[(f"w{BEGIN}", BEGIN)]
    )
    return tokenizer


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[bool, str]:
    root = tmp_path_factory.mktemp("checkpoints")
    return {
        False: save_checkpoint(root / "without"),
        True: save_checkpoint(root / "with", tokenizer=tokenizer_with_prefix()),
    }


def score(checkpoint, documents, supervised, **options):
    grouper = SelectiveIfd.from_options(GrouperOptions(reference_model=checkpoint, device="cpu", **options))
    return grouper, grouper.score(make_batch(documents, supervised))


def slow_differences(
    checkpoint: str, documents: list[list[int]], supervised: list[list[bool]], has_prefix: bool
) -> list[float]:
    """Token by token, with a forward pass each for y_t after everything, and for y_t after its own response alone."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float64)

    def loss(context: list[int], token: int) -> float:
        logits = model(input_ids=torch.tensor([context]), use_cache=False).logits[0, -1]
        return -torch.log_softmax(logits, dim=-1)[token].item()

    values = []
    with torch.no_grad():
        for ids, flags in zip(documents, supervised, strict=True):
            for t, token in enumerate(ids):
                begin = t
                while begin > 0 and flags[begin - 1]:
                    begin -= 1
                alone = ids[begin:t]
                if has_prefix and ids[0] == BEGIN and begin > 0:
                    alone = [BEGIN, *alone]
                known = flags[t] and t > 0 and len(alone) > 0
                values.append(loss(ids[:t], token) - loss(alone, token) if known else 0.0)
    return values


@pytest.mark.parametrize("has_prefix", [False, True])
def test_equals_full_logits_in_float64(checkpoints, has_prefix):
    """Conversations of several responses, with the prefix and without it, also a response that is all there is."""
    random = np.random.default_rng(1)
    documents = [[BEGIN, *ids] if i % 3 else ids for i, ids in enumerate(random_documents(12, seed=2, longest=20))]
    supervised = [np.repeat(random.random(len(ids)) < 0.5, 3)[: len(ids)].tolist() for ids in documents]
    supervised = [[False, *flags[1:]] if i % 3 else flags for i, flags in enumerate(supervised)]
    documents += [[5, 6, 7], [BEGIN, 1, 2]]
    supervised += [[True] * 3, [False, True, True]]
    expected = np.array(slow_differences(checkpoints[has_prefix], documents, supervised, has_prefix))
    assert (expected > 0.1).any()
    assert (expected < -0.1).any()
    _, found = score(checkpoints[has_prefix], documents, supervised, batch_tokens=64)
    np.testing.assert_allclose(found.columns["sifd_gain"], -expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(found.columns["sifd"], np.abs(found.columns["sifd_gain"]))


def test_without_a_prompt_nothing_is_gained(checkpoints):
    """A plain corpus: what is read with the prompt and without it is the same."""
    _, found = score(checkpoints[True], [[BEGIN, 5, 6, 7]], [[False, True, True, True]])
    assert not found.columns["sifd"].any()


def test_only_the_prompt_makes_the_difference(checkpoints):
    """Two prompts, one response: the loss without the prompt is one, so the gains differ by the losses with it."""
    documents, flags = [[BEGIN, 3, 4, 20, 21], [BEGIN, 9, 20, 21]], [[False] * 3 + [True] * 2, [False] * 2 + [True] * 2]
    grouper, found = score(checkpoints[True], documents, flags)
    gains = found.columns["sifd_gain"]
    losses = grouper._load(grouper.checkpoints[0]).losses(
        make_batch(documents).input_ids, make_batch(documents).offsets, np.arange(2), 100
    )
    np.testing.assert_allclose(gains[3:5] - gains[7:9], losses[7:9] - losses[3:5], rtol=0, atol=1e-5)
    assert np.abs(gains[3:5] - gains[7:9]).min() > 1e-3
    report = grouper.report(found.counters)
    assert found.counters["scored_tokens"] == 4
    assert report["mean_loss"] == pytest.approx(np.mean(losses[[3, 4, 7, 8]]), abs=1e-6)
    gain = report["mean_loss_without_prompt"] - report["mean_loss"]
    assert gain == pytest.approx(np.mean(gains[[3, 4, 7, 8]], dtype=np.float64), abs=1e-6)
    assert grouper.report({})["mean_loss"] is None
