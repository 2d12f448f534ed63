"""--package-parity: chunks, words and word probabilities equal those of the `llmlingua` package 0.2.2.

Weights are random, in the real architectures; the tokenizers are trained on real text. `load_package` says the
one thing that is replaced in the package (a tokenizer that it would fetch from the network) and why nothing compared
depends on it.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from annotate.groupers.llmlingua2.checkpoint import Checkpoint
from annotate.groupers.llmlingua2.model import Compressor
from tests.annotate.groupers.llmlingua2.compressor_checkpoints import (
    MODULES,
    PACKAGE_NAMES,
    PARAGRAPHS,
    SAMPLE,
    TRAIN,
    TRICKY,
    load_package,
    package_chunks,
    package_words,
    save_compressor,
    small_tokenizer,
)

pytest.importorskip("llmlingua", reason="the reference; pip install 'sft-go[llmlingua]'")
DATA = Path(__file__).parents[5] / "shared" / "data"
FAMILIES = list(PACKAGE_NAMES)
# Long texts whose chunks cannot end at a period: the package cuts them inside words, then reads the pieces anew.
UNBROKEN = [
    "argument parser description " * 600,
    "so " + "unbelievably" * 400,
    "x_1 = [y, z], " * 300,
    "☃ a " * 700,
    "b " + "a" * 3000,
]


def spelled_words(compressor: Compressor, chunks) -> list[list[str]]:
    """Spell out each document's words, token by token."""
    documents: list[list[str]] = [[] for _ in range(chunks.num_documents)]
    tokens = compressor.tokenizer.convert_ids_to_tokens(chunks.ids.tolist())
    owners = np.repeat(chunks.documents, np.diff(chunks.offsets))
    for token, owner, begins, counted in zip(tokens, owners, chunks.begins, chunks.counted, strict=True):
        if counted and begins:
            documents[owner].append(token.lstrip("▁") if compressor.rule.marker is not None else token)
        elif counted:
            documents[owner][-1] += token.lstrip("#" if compressor.rule.marker is None else "▁")
    return documents


def check_parity(directory: Path, texts: list[str]) -> int:
    """Compare everything on these texts; return the number of words."""
    package = load_package(directory)
    expected_chunks = package_chunks(package, texts)
    expected_words, expected_values = package_words(package, expected_chunks)

    compressor = Compressor(Checkpoint.find(str(directory)), package_parity=True, batch_tokens=1024)
    chunks = compressor.chunks(texts)
    strings = iter([string for document in expected_chunks for string in document])
    for chunk in range(len(chunks.documents)):
        own = chunks.ids[chunks.offsets[chunk] : chunks.offsets[chunk + 1]]
        theirs = package.tokenizer.convert_tokens_to_ids(package.tokenizer.tokenize(next(strings)))
        assert own.tolist() == theirs[:511], "chunk boundaries"
    assert next(strings, None) is None
    assert spelled_words(compressor, chunks) == expected_words

    found = compressor.word_probabilities(texts)
    assert found.num_chunks.tolist() == [len(document) for document in expected_chunks]
    assert found.documents.tolist() == [i for i, words in enumerate(expected_words) for _ in words]
    flat = np.array([value for document in expected_values for value in document])
    np.testing.assert_allclose(found.probabilities, flat, rtol=0, atol=1e-5)
    assert np.ptp(flat) > 0.5, "the comparison needs probabilities that differ"
    return len(flat)


@pytest.fixture(scope="module", params=FAMILIES)
def small(request, tmp_path_factory):
    """A checkpoint of each family in a directory with the name that the package wants."""
    directory = tmp_path_factory.mktemp(request.param) / PACKAGE_NAMES[request.param]
    return save_compressor(directory, request.param, small_tokenizer(request.param))


def test_parity_on_prose_code_languages_and_tricky_texts(small):
    assert check_parity(small, [*TRICKY, *SAMPLE[::3], *PARAGRAPHS[:50], MODULES[1]]) > 10_000


def test_parity_where_chunks_cut_words(small):
    check_parity(small, UNBROKEN)


def test_parity_keeps_the_document_s_characters(small):
    """Each word's span holds its spelling, also where the package reads a chunk anew and gets other tokens."""
    compressor = Compressor(Checkpoint.find(str(small)), package_parity=True)
    texts = [MODULES[1], UNBROKEN[0], UNBROKEN[2]]
    words = compressor.word_probabilities(texts)
    spelled = [word for document in spelled_words(compressor, compressor.chunks(texts)) for word in document]
    found = [texts[owner][start:end] for owner, (start, end) in zip(words.documents, words.spans, strict=True)]
    wrong = [pair for pair in zip(found, spelled, strict=True) if pair[0] != pair[1]]
    assert len(found) > 2000
    # BERT's "##" turned to two words of punctuation at a chunk's beginning stands for no character.
    assert all(own == "" and theirs == "#" for own, theirs in wrong), wrong


def test_package_special_tokens(small):
    """The package wraps every chunk in [CLS] and [SEP]; XLM-R has neither, so its models see <unk>."""
    compressor = Compressor(Checkpoint.find(str(small)), package_parity=True)
    names = compressor.tokenizer.convert_ids_to_tokens([compressor.before, compressor.after])
    assert names == (["[CLS]", "[SEP]"] if compressor.rule.marker is None else ["<unk>", "<unk>"])


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data")
@pytest.mark.parametrize("family", FAMILIES)
def test_parity_on_alpaca_and_lima(family, tmp_path):
    """1,000 Alpaca documents and all of LIMA, which are long."""
    alpaca = json.loads((DATA / "alpaca.json").read_text(encoding="utf-8"))
    lima = json.loads((DATA / "lima.json").read_text(encoding="utf-8"))
    records = [f"User: {r['instruction']} {r['input']}\nAssistant: {r['output']}" for r in [*alpaca[:1000], *lima]]
    assert len(records) == 2029
    tokenizer = TRAIN[family](records[:1500], 4000)
    size = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    directory = save_compressor(tmp_path / PACKAGE_NAMES[family], family, tokenizer, **size)
    assert check_parity(directory, records) > 500_000
