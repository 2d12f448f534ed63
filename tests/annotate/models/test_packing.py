"""Batches by hand, which models are packed, and that nobody's scores depend on who shares a batch."""

import numpy as np
import pytest
import torch

from annotate.groupers.llmlingua2.checkpoint import Checkpoint
from annotate.groupers.llmlingua2.model import Compressor
from annotate.groupers.rho1.reference_loss import ReferenceModel
from annotate.models import packing
from annotate.models.packing import ATTENTION, Packing
from annotate.models.planning import padded_width, plan_packed, plan_padded
from tests.annotate.groupers.llmlingua2.compressor_checkpoints import save_compressor, small_tokenizer
from tests.annotate.groupers.rho1.rho1_models import CONFIGS, make_model, save_checkpoint


def lists(batches):
    return [batch.tolist() for batch in batches]


def test_packed_plan_by_hand():
    lengths = np.array([3, 9, 1, 4, 4, 12])
    assert lists(plan_packed(lengths, 12)) == [[5], [1], [3, 4, 0, 2]]
    assert lists(plan_packed(lengths, 13)) == [[5], [1, 3], [4, 0, 2]]
    assert lists(plan_packed(lengths, 1)) == [[5], [1], [3], [4], [0], [2]]
    assert lists(plan_packed(lengths, 1000)) == [[5, 1, 3, 4, 0, 2]]
    assert lists(plan_packed(np.zeros(0, dtype=np.int64), 5)) == []


def test_padded_plan_by_hand():
    assert padded_width(np.array([1, 8, 9, 300])).tolist() == [8, 8, 16, 304]
    lengths = np.array([8, 100, 95, 48, 101, 5, 8])  # widths 8, 104, 96, 48, 104, 8, 8
    # 312 of at most 350, padding 8 of 304. 48 is alone: with an 8, 96 > 1.1 · 56.
    assert lists(plan_padded(lengths, 350, 0.1)) == [[4, 1, 2], [3], [0, 6, 5]]
    assert lists(plan_padded(lengths, 210, 0.1)) == [[4, 1], [2], [3], [0, 6, 5]]
    assert lists(plan_padded(lengths, 350, 9.0)) == [[4, 1, 2], [3, 0, 6, 5]]
    assert lists(plan_padded(lengths, 1, 9.0)) == [[4], [1], [2], [3], [0], [6], [5]]
    assert lists(plan_padded(np.zeros(0, dtype=np.int64), 5, 9.0)) == []


@pytest.fixture
def bert():
    return small_model("bert")


def small_model(family: str, **settings):
    """Return a token classifier with random weights, whose padding has the id 3."""
    from transformers import AutoConfig, AutoModelForTokenClassification

    config = AutoConfig.for_model(
        family,
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        initializer_range=0.2,
        **{"pad_token_id": 3, "max_position_embeddings": 44, **settings},
    )
    torch.manual_seed(0)
    return AutoModelForTokenClassification.from_config(config).eval()


def test_a_packed_batch_by_hand(bert):
    way = Packing(bert)
    flat = np.array([7, 0, 0, 8, 9, 10, 0, 11])
    (batch,) = way.batches(np.array([0, 3, 7]), np.array([1, 3, 1]), 100)
    assert flat[batch.sources].tolist() == [[8, 9, 10, 7, 11] + [11] * 27]  # filled up to 32
    assert batch.real.tolist() == [[True] * 5 + [False] * 27]
    assert batch.edges.tolist() == [0, 3, 4, 5, 32]
    (whole,) = way.batches(np.array([0]), np.array([32]), 100)
    assert whole.edges.tolist() == [0, 32]
    seen = np.array([[True, False, True] + [True] * 29])
    inputs = way.inputs(batch, flat[batch.sources], seen)
    assert inputs["position_ids"].tolist() == [[0, 1, 2, 0, 0, *range(27)]]
    (first, mask), *others = inputs["sequences"]
    assert first == slice(0, 3)
    assert (mask[0, 0, 0] == 0).tolist() == [True, False, True]
    assert [(own.start, own.stop, other) for own, other in others] == [(3, 4, None), (4, 5, None), (5, 32, None)]


def test_a_padded_batch_by_hand(bert, monkeypatch):
    monkeypatch.setattr(Packing, "_pack", lambda self, model: False)
    way = Packing(bert)
    flat = np.arange(100)
    first, second = way.batches(np.array([0, 10, 50]), np.array([3, 41, 42]), 96)
    assert first.sources.tolist() == [[*range(50, 92), 91, 91], [*range(10, 51), 50, 50, 50]]  # 44 positions, not 48
    assert first.edges is None
    assert second.sources.tolist() == [[0, 1, 2, 2, 2, 2, 2, 2]]
    assert second.real.tolist() == [[True] * 3 + [False] * 5]
    mask = way.inputs(second, flat[second.sources], second.real)["attention_mask"]
    assert mask.shape == (1, 1, 8, 8)
    assert mask[:, 0, 5].tolist() == second.real.tolist()
    assert way.inputs(second, flat[second.sources])["attention_mask"] is None


def test_positions_of_the_roberta_family_are_its_own():
    """A padding token inside a text has the padding's position and does not count."""
    model = small_model("xlm-roberta")
    way = Packing(model)
    assert way.packed
    ids = np.array([5, 3, 6, 3, 3, 7, 8, 9, 5, 5, 5, 5, 5, 5, 5, 5, 5])
    (batch,) = way.batches(np.array([0, 4]), np.array([4, 13]), 100)
    found = way.inputs(batch, ids[batch.sources])["position_ids"][0][:17]
    own = model.base_model.embeddings.create_position_ids_from_input_ids
    wanted = [own(torch.tensor(part)[None], 3)[0] for part in (ids[4:], ids[:4])]
    assert found.tolist() == torch.cat(wanted).tolist()
    assert found[-4:].tolist() == [4, 3, 5, 3]


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_which_models_are_packed(kind):
    """Windows, and state instead of attention, are not; such models are left as they were."""
    model = make_model(kind)
    before = model.config._attn_implementation
    packed = Packing(model).packed
    assert packed is (kind not in ("gemma2", "mamba"))
    assert model.config._attn_implementation == (ATTENTION if packed else before)


def test_a_model_that_only_now_and_then_has_a_window_is_not_packed():
    model = make_model("qwen2", use_sliding_window=True, sliding_window=40, max_window_layers=1)
    assert not Packing(model).packed


def test_low_precision_is_not_packed(bert):
    assert not Packing(bert.bfloat16()).packed


@pytest.mark.parametrize("fault", ["attention sees all", "attention fails", "positions go on"])
def test_what_does_not_come_out_equal_is_not_packed(bert, monkeypatch, fault):
    attend, positions = packing._attend, Packing._positions
    if fault == "attention sees all":
        monkeypatch.setattr(packing, "_attend", lambda *parts, sequences=None, **rest: attend(*parts, **rest))
    elif fault == "attention fails":
        monkeypatch.setattr(packing, "_attend", lambda *parts, **rest: attend(*parts, sliding_window=4, **rest))
    else:
        monkeypatch.setattr(Packing, "_positions", lambda self, ids, edges: positions(self, ids, edges[[0, -1]]))
    before = bert.config._attn_implementation
    assert not Packing(bert).packed
    assert bert.config._attn_implementation == before


LENGTHS = (2, 5, 16, 17, 30, 31, 32, 33, 64, 100, 150, 177, 180, 190, 192, 193, 200, 210, 300, 400, 499)


@pytest.fixture
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_reference_losses_are_the_same_in_any_batch(kind, tmp_path, two_threads):
    """To the last bit: the service and the shards give equal numbers on machines of one kind."""
    save_checkpoint(tmp_path / kind, kind, max_position_embeddings=500)
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
        assert max(np.abs(together[i] - alone[i]).max() for i in alone) == 0


@pytest.mark.parametrize("family", ["bert", "xlm-roberta"])
def test_probabilities_are_the_same_in_any_batch(family, tmp_path, two_threads):
    directory = save_compressor(tmp_path / "compressor", family, small_tokenizer(family))
    compressor = Compressor(Checkpoint.find(str(directory)))
    rng = np.random.default_rng(0)
    letters = list("abcdefghij")
    texts = [" ".join("".join(rng.choice(letters, 3)) for _ in range(n)) for n in (*range(1, 120, 3), 150, 200) * 2]
    alone = [compressor.word_probabilities([text]).probabilities for text in texts]
    for budget in (600, 2048, 100_000):
        compressor.batch_tokens = budget
        order = rng.permutation(len(texts))
        words = compressor.word_probabilities([texts[i] for i in order])
        for place, i in enumerate(order):
            assert np.abs(words.probabilities[words.documents == place] - alone[i]).max() == 0


class TestWindows:
    """What a GPU is given: the padded way, tried on a CPU. Nothing in it may make the host wait."""

    @pytest.fixture
    def compressor(self, tmp_path, monkeypatch):
        monkeypatch.setattr(Packing, "_pack", lambda self, model: False)  # as on a GPU
        tokenizer = small_tokenizer("bert")
        save_compressor(tmp_path / "compressor", "bert", tokenizer)
        return Compressor(Checkpoint.find(str(tmp_path / "compressor")), batch_tokens=64)

    TEXTS = ("the cat sat . the dog ran away", "a cat", "the mat and then the dog sat on it . so it was", "")

    def test_masks_are_ready_and_copies_few(self, compressor, monkeypatch):
        seen, copies = [], []
        forward, put = compressor.model.forward, compressor.packing._put

        def watched(*arguments, **keywords):
            seen.append(keywords["attention_mask"])
            return forward(*arguments, **keywords)

        monkeypatch.setattr(compressor.model, "forward", watched)
        monkeypatch.setattr(compressor.packing, "_put", lambda array: copies.append(array.dtype) or put(array))
        compressor.word_probabilities(list(self.TEXTS) * 6)
        assert len(seen) > 2  # batches, of one window
        assert len(copies) == 2  # their tokens, and who is seen
        masks = [mask for mask in seen if mask is not None]
        assert masks
        assert all(mask.dim() == 4 and mask.dtype == torch.bool for mask in masks)

    def test_scores_are_those_of_a_two_dimensional_mask(self, compressor, monkeypatch):
        found = compressor.word_probabilities(list(self.TEXTS))
        monkeypatch.setattr(compressor.packing, "_ready", lambda seen: seen)  # transformers makes the mask of it
        expected = compressor.word_probabilities(list(self.TEXTS))
        np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-6)

    def test_reference_losses_are_fetched_once(self, tmp_path, monkeypatch):
        save_checkpoint(tmp_path, "llama")
        model = ReferenceModel(str(tmp_path), "--reference-model", None, "float32", "cpu")
        rng = np.random.default_rng(0)
        lengths = np.array([5, 17, 3, 9, 30, 1])
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        ids = rng.integers(0, model.vocab_size, offsets[-1]).astype(np.int32)
        expected = model.losses(ids, offsets, np.arange(6), 40)
        monkeypatch.setattr(Packing, "_pack", lambda self, model: False)
        model = ReferenceModel(str(tmp_path), "--reference-model", None, "float32", "cpu")
        fetched = []
        cpu = torch.Tensor.cpu
        monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: fetched.append(tensor.shape) or cpu(tensor))
        found = model.losses(ids, offsets, np.arange(6), 40)
        assert len(fetched) == 1
        np.testing.assert_allclose(found, expected, atol=1e-5)
