"""What every grouper over a reference model must hold: no neighbour, budget or pickle changes its scores; refusals."""

import pickle

import numpy as np
import pytest

from annotate.groupers import REGISTRY, grouper_class
from annotate.groupers.base import GrouperOptions
from annotate.groupers.reference import ReferenceGrouper
from common.errors import UserError
from tests.annotate.groupers.rho1.rho1_models import make_batch, random_documents, save_checkpoint

NAMES = [name for name in REGISTRY if issubclass(grouper_class(name), ReferenceGrouper)]
pytestmark = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def build(name: str, checkpoint: str, **options) -> ReferenceGrouper:
    return grouper_class(name).from_options(GrouperOptions(reference_model=checkpoint, device="cpu", **options))


def conversations(documents: list[list[int]], seed: int = 0) -> list[list[bool]]:
    random = np.random.default_rng(seed)
    return [(random.random(len(ids)) < 0.6).tolist() for ids in documents]


def test_contract(name, checkpoint):
    documents = random_documents(24, seed=1)
    supervised = conversations(documents)
    grouper = build(name, checkpoint)
    whole = grouper.score(make_batch(documents, supervised)).columns
    assert set(whole) == set(grouper.columns)
    travelled = pickle.loads(pickle.dumps(grouper))
    assert not travelled._models
    again = grouper_class(name).from_parameters(grouper.parameters, GrouperOptions(device="cpu", batch_tokens=60))
    assert again.parameters == grouper.parameters
    order = np.random.default_rng(2).permutation(len(documents))
    batch = make_batch([documents[i] for i in order], [supervised[i] for i in order])
    ends = np.cumsum([len(ids) for ids in documents])[:-1]
    for column, values in whole.items():
        assert values.dtype == np.float32
        assert values.std() > 0.1  # scores that are all alike would show nothing
        wanted = np.concatenate([np.split(values, ends)[i] for i in order])
        np.testing.assert_allclose(again.score(batch).columns[column], wanted, rtol=0, atol=1e-6)
        alone = travelled.score(make_batch(documents[:1], supervised[:1])).columns[column]
        np.testing.assert_allclose(alone, values[: len(alone)], rtol=0, atol=1e-6)


def test_documents_that_the_model_cannot_score_are_rejected_and_the_others_are_not(name, checkpoint):
    fit = random_documents(3, seed=3)
    documents = [fit[0], [1] * 65, fit[1], [3, 97, 4], fit[2]]  # 64 positions; 97 entries
    grouper = build(name, checkpoint)
    found = grouper.score(make_batch(documents))
    assert set(found.rejects) == {1, 3}
    for column, values in grouper.score(make_batch(fit)).columns.items():
        kept = ~np.isin(make_batch(documents).document_index, [1, 3])
        np.testing.assert_allclose(found.columns[column][kept], values, rtol=0, atol=1e-6)
        assert not found.columns[column][~kept].any()
    assert grouper.report(found.counters)["rejected_documents"] == 2


def test_nothing_to_score(name, checkpoint):
    scores = build(name, checkpoint).score(make_batch([[5], [6]], [[False], [True]]))
    assert all(not values.any() for values in scores.columns.values())
    assert build(name, checkpoint).score(make_batch([])).rejects == {}


def test_settings_that_are_wrong(name, checkpoint):
    with pytest.raises(UserError, match=f"--grouper {name}: expected --reference-model"):
        build(name, None)
    with pytest.raises(UserError, match="--batch-tokens -1"):
        build(name, checkpoint, batch_tokens=-1)
    with pytest.raises(UserError, match="is not the one that the documents are"):
        build(name, checkpoint, tokenizer_fingerprint="0" * 64)
