"""Widths and batches, and that nobody's scores depend on who shares a batch."""

import numpy as np
import pytest

from annotate.compressor.checkpoint import Checkpoint
from annotate.compressor.model import Compressor
from annotate.padding import padded_widths, plan_batches
from annotate.reference_loss import ReferenceModel
from tests.annotate.compressor_checkpoints import save_compressor, small_tokenizer
from tests.annotate.rho1_models import save_checkpoint


def plan(widths, *limits, device="cpu", **options):
    return [batch.tolist() for batch in plan_batches(np.array(widths, dtype=np.int64), *limits, device, **options)]


def test_widths_by_hand():
    lengths = np.array([1, 16, 17, 300])
    assert padded_widths(lengths, "cpu").tolist() == [16, 16, 32, 304]
    assert padded_widths(lengths, "cuda").tolist() == [8, 16, 24, 304]
    assert padded_widths(lengths, "cpu", 300).tolist() == [16, 16, 32, 300]


def test_budget_by_hand():
    widths = [3, 9, 1, 4, 4, 12]
    assert plan(widths, 12) == [[5], [1], [3, 4, 0], [2]]
    assert plan(widths, 1) == [[5], [1], [3], [4], [0], [2]]
    assert plan([], 5) == []


def test_padding_by_hand():
    widths = [10, 100, 95, 50, 101, 10, 10]
    # 101 with 100 and 95: 303 of at most 350, padding 7 of 296. 50 is alone: with a 10, 100 > 1.1 · 60.
    assert plan(widths, 350, max_padding=0.1) == [[4, 1, 2], [3], [0, 5, 6]]
    assert plan(widths, 210, max_padding=0.1) == [[4, 1], [2], [3], [0, 5, 6]]
    # 40 tokens of padding are free: 50 takes one 10 along, not two.
    assert plan(widths, 350, max_padding=0.1, free_padding=40) == [[4, 1, 2], [3, 0], [5, 6]]
    assert plan(widths, 350, max_padding=9.0) == [[4, 1, 2], [3, 0, 5, 6]]


def test_wide_sequences_on_a_cpu_are_batched_with_their_equals():
    widths = [208, 192, 224, 208, 176, 16]
    assert plan(widths, 1000) == [[2], [0, 3], [1, 4, 5]]
    assert plan(widths, 1000, device="cuda") == [[2, 0, 3, 1], [4, 5]]


def test_little_is_padding():
    lengths = np.minimum(np.random.default_rng(0).lognormal(5.0, 0.8, 2000).astype(int) + 1, 4096)
    widths = padded_widths(lengths, "cpu")
    padded = sum(len(batch) * widths[batch].max() for batch in plan_batches(widths, 4096, "cpu"))
    assert padded < 1.1 * lengths.sum()


LENGTHS = (2, 5, 16, 17, 30, 31, 32, 33, 64, 100, 150, 177, 180, 190, 192, 193, 200, 210, 300, 400, 500)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_reference_losses_are_the_same_in_any_batch(kind, tmp_path):
    """Not within a tolerance for losses (1e-5), but within a rounding step of each: what the service promises."""
    save_checkpoint(tmp_path / kind, kind, max_position_embeddings=512)
    model = ReferenceModel(str(tmp_path / kind), "--reference-model", None, "float32", "cpu")
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, model.vocab_size, length, dtype=np.int32) for length in LENGTHS * 3]

    def losses(order, budget):
        offsets = np.concatenate([[0], np.cumsum([len(documents[i]) for i in order])])
        found = model.losses(np.concatenate([documents[i] for i in order]), offsets, np.arange(len(order)), budget)
        return dict(zip(order, np.split(found, offsets[1:-1]), strict=True))

    alone = {i: losses([i], 4096)[i] for i in range(len(documents))}
    for budget in (600, 4096, 100_000):
        together = losses(rng.permutation(len(documents)).tolist(), budget)
        assert max(np.abs(together[i] - alone[i]).max() for i in alone) < 1e-6


def test_probabilities_are_the_same_in_any_batch(tmp_path):
    directory = save_compressor(tmp_path / "compressor", "bert", small_tokenizer("bert"))
    compressor = Compressor(Checkpoint.find(str(directory)))
    rng = np.random.default_rng(0)
    letters = list("abcdefghij")
    texts = [" ".join("".join(rng.choice(letters, 3)) for _ in range(n)) for n in (*range(1, 120, 3), 150, 200) * 2]
    alone = [compressor.word_probabilities([text]).probabilities for text in texts]
    for budget in (600, 1024, 100_000):
        compressor.batch_tokens = budget
        order = rng.permutation(len(texts))
        words = compressor.word_probabilities([texts[i] for i in order])
        for place, i in enumerate(order):
            assert np.abs(words.probabilities[words.documents == place] - alone[i]).max() < 3e-7
