"""Annotation of the real Alpaca and LIMA files with the real Llama 3 tokenizer, checked on every document."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from sklearn.feature_extraction.text import TfidfVectorizer

from annotate.run.pipeline import run
from annotate.run.settings import Settings
from annotate.tokens.target import load_tokenizer

pytestmark = pytest.mark.slow


def annotate(shared, tmp_path_factory, name, groupers):
    out = tmp_path_factory.mktemp(name) / "shards"
    settings = Settings(
        data=str(shared / "data" / f"{name}.json"),
        groupers=groupers,
        out=out,
        engine="local",
        tokenizer=str(shared / "tokenizers" / "llama-3"),
    )
    summary = run(settings, Console(quiet=True))
    return summary.manifest, pq.read_table(sorted(out.glob("part-*")))


@pytest.fixture(scope="module")
def alpaca(shared, tmp_path_factory):
    return annotate(shared, tmp_path_factory, "alpaca", ("tfidf", "frequency", "random"))


@pytest.fixture(scope="module")
def lima(shared, tmp_path_factory):
    return annotate(shared, tmp_path_factory, "lima", ("tfidf",))


def test_alpaca_documents_and_rejects(alpaca):
    manifest, table = alpaca
    assert table.num_rows == manifest.counts.documents == 17_378
    assert manifest.counts.rejects == {"empty_response": 9}


def test_alpaca_tfidf_equals_scikit_learn_on_every_token(alpaca):
    _, table = alpaca
    documents = table["input_ids"].to_pylist()
    vectorizer = TfidfVectorizer(analyzer=lambda document: document)
    matrix = vectorizer.fit_transform(documents).sorted_indices()
    columns = np.full(max(vectorizer.vocabulary_) + 1, -1)
    for term, column in vectorizer.vocabulary_.items():
        columns[term] = column
    scores, worst = table["tfidf"].to_pylist(), 0.0
    for row, (document, found) in enumerate(zip(documents, scores, strict=True)):
        start, end = matrix.indptr[row], matrix.indptr[row + 1]
        places = np.searchsorted(matrix.indices[start:end], columns[document])
        worst = max(worst, np.abs(matrix.data[start:end][places] - np.array(found)).max())
    assert worst < 1e-6


def test_lima_supervises_exactly_the_responses_and_their_end_of_turn_tokens(shared, lima):
    _, table = lima
    records = json.loads((shared / "data" / "lima.json").read_text(encoding="utf-8"))
    tokenizer = load_tokenizer(str(shared / "tokenizers" / "llama-3"))
    assert table.num_rows == len(records) == 1_029
    several = 0
    for row in table.to_pylist():
        record = records[row["source_row"]]
        responses = [answer for _, answer in record["history"]] + [record["output"]]
        several += len(responses) > 1
        supervised = [token for token, flag in zip(row["input_ids"], row["supervised"], strict=True) if flag]
        assert tokenizer.decode(supervised) == "".join(f"{response}<|end_of_text|>" for response in responses)
        assert tokenizer.decode(row["input_ids"], skip_special_tokens=True) == row["text"]
        assert row["input_ids"][0] == tokenizer.bos_token_id
        assert row["input_ids"].count(tokenizer.bos_token_id) == 1
    assert several == 29
