"""The groupers that run no model; and a contract that every registered one of them must hold."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from annotate.groupers import REGISTRY, grouper_class
from annotate.groupers.base import GrouperOptions
from annotate.tokens.batch import TokenBatch
from common.errors import UserError

WITHOUT_MODEL = [name for name in REGISTRY if not grouper_class(name).uses_model]


def make_batch(documents: list[list[int]], first: int = 0) -> TokenBatch:
    lengths = [len(document) for document in documents]
    ids = np.array([token for document in documents for token in document], dtype=np.int32)
    return TokenBatch(
        document_ids=[f"document {first + i}" for i in range(len(documents))],
        source_rows=np.arange(first, first + len(documents)),
        texts=[""] * len(documents),
        input_ids=ids,
        supervised=np.ones(len(ids), dtype=bool),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    )


def random_documents(num: int = 60, seed: int = 0) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [(random.zipf(1.3, random.integers(1, 50)) % 500).tolist() for _ in range(num)]


def fitted(name: str, documents: list[list[int]], state: Path):
    grouper = grouper_class(name).from_options(GrouperOptions())
    if grouper.needs_fit:
        grouper.fit(grouper.count(make_batch(documents)))
        grouper.save(state)
        assert grouper.is_fitted(state)
    return grouper


def test_tfidf_by_hand(tmp_path):
    # N = 2; df(1) = 2, df(2) = df(3) = 1; idf(1) = ln(3/3) + 1 = 1, idf(2) = idf(3) = ln(3/2) + 1
    rare = np.log(1.5) + 1
    scores = fitted("tfidf", [[1, 2, 1], [1, 3]], tmp_path).score(make_batch([[1, 2, 1], [1, 3]])).columns["tfidf"]
    first, second = np.hypot(2, rare), np.hypot(1, rare)
    assert scores == pytest.approx([2 / first, rare / first, 2 / first, 1 / second, rare / second], abs=1e-7)


def test_tfidf_equals_scikit_learn(tmp_path):
    documents = random_documents()
    scores = fitted("tfidf", documents, tmp_path).score(make_batch(documents)).columns["tfidf"]
    vectorizer = TfidfVectorizer(analyzer=lambda document: document)
    matrix = vectorizer.fit_transform(documents).toarray()
    wanted = [matrix[i, vectorizer.vocabulary_[t]] for i, document in enumerate(documents) for t in document]
    np.testing.assert_allclose(scores, wanted, atol=1e-6, rtol=0)


def test_tfidf_of_new_text_equals_scikit_learns_transform_with_unknown_terms_as_df_0(tmp_path):
    fitted("tfidf", [[1, 2, 1], [1, 3]], tmp_path)
    grouper = grouper_class("tfidf").from_parameters({}, GrouperOptions())
    grouper.load(tmp_path)
    scores = grouper.score(make_batch([[1, 9_999]])).columns["tfidf"]
    new = np.log(3 / 1) + 1
    assert scores == pytest.approx([1 / np.hypot(1, new), new / np.hypot(1, new)], abs=1e-7)


def test_frequency_by_hand(tmp_path):
    grouper = fitted("frequency", [[1, 2, 1], [1]], tmp_path)
    scores = grouper.score(make_batch([[1, 2, 7]])).columns["frequency"]
    assert scores == pytest.approx([-np.log(3 / 4), -np.log(1 / 4), -np.log(1 / 4)], abs=1e-7)


def test_frequency_of_a_corpus_with_one_kind_of_token(tmp_path):
    scores = fitted("frequency", [[5, 5]], tmp_path).score(make_batch([[5, 5]])).columns["frequency"]
    assert scores.tolist() == [0.0, 0.0]
    assert not np.signbit(scores).any()


def test_random_is_uniform_and_moves_with_seed_and_document():
    documents = [[0] * 200_000, [0] * 200_000]
    scores = grouper_class("random").from_options(GrouperOptions(seed=1)).score(make_batch(documents)).columns["random"]
    first, second = scores[:200_000], scores[200_000:]
    assert scores.min() >= 0
    assert scores.max() < 1
    counts, _ = np.histogram(first, bins=20, range=(0, 1))
    assert np.abs(counts - 10_000).max() < 500  # five standard deviations
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.012
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.012
    other = grouper_class("random").from_options(GrouperOptions(seed=2)).score(make_batch(documents)).columns["random"]
    assert abs(np.corrcoef(scores, other)[0, 1]) < 0.012


@pytest.mark.parametrize("name", WITHOUT_MODEL)
def test_contract(name, tmp_path):
    documents = random_documents(40, seed=3)
    grouper = fitted(name, documents, tmp_path)
    whole = grouper.score(make_batch(documents))
    assert set(whole.columns) == set(grouper.columns)
    for values in whole.columns.values():
        assert values.dtype == np.float32
        assert values.shape == (make_batch(documents).num_tokens,)
        assert np.isfinite(values).all()
    # another process, built from the manifest
    again = pickle.loads(pickle.dumps(grouper_class(name).from_parameters(grouper.parameters, GrouperOptions())))
    if again.needs_fit:
        again.load(tmp_path)
    # other neighbours, bit for bit
    parts = [again.score(make_batch([document], first=i)).columns for i, document in enumerate(documents)]
    for column, values in whole.columns.items():
        assert np.concatenate([part[column] for part in parts]).tobytes() == values.tobytes()


@pytest.mark.parametrize("name", [n for n in WITHOUT_MODEL if grouper_class(n).needs_fit])
def test_a_missing_state_is_an_error(name, tmp_path):
    grouper = grouper_class(name).from_options(GrouperOptions())
    assert not grouper.is_fitted(tmp_path)
    with pytest.raises(UserError, match="expected the fitted counts"):
        grouper.load(tmp_path)


def test_an_unknown_grouper():
    with pytest.raises(UserError, match="expected one of tfidf, frequency, random"):
        grouper_class("bm25")
