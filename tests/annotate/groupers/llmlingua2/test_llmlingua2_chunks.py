"""Chunks and words without `--package-parity`: the cutting rule by hand, what the model is fed, and hard texts."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer

from annotate.groupers.llmlingua2 import model as compressor_model
from annotate.groupers.llmlingua2.alignment import align
from annotate.groupers.llmlingua2.checkpoint import Checkpoint
from annotate.groupers.llmlingua2.chunks import Tokens, cut
from annotate.groupers.llmlingua2.model import Compressor
from annotate.groupers.llmlingua2.rule import WordRule
from annotate.models.packing import Packing
from tests.annotate.groupers.llmlingua2.compressor_checkpoints import (
    MODULES,
    SAMPLE,
    TRICKY,
    save_compressor,
    small_tokenizer,
)

BEGIN, INSIDE, PERIOD = 0, 1, 2
TOY = WordRule(
    begins=np.array([True, False, True]),
    special=np.zeros(3, dtype=bool),
    ends_chunk=np.array([False, False, True]),
    marker=None,
)


def toy(*documents: list[int]) -> Tokens:
    ids = np.array([token for document in documents for token in document], dtype=np.int64)
    offsets = np.cumsum([0, *map(len, documents)])
    return Tokens(ids, np.zeros((len(ids), 2), np.int64), offsets)


def with_periods(length: int, *places: int, fill: int = BEGIN) -> list[int]:
    document = [fill] * length
    for place in places:
        document[place] = PERIOD
    return document


# A document, where its chunks begin, and where the package's begin (None: the same).
CUTS = {
    "fits": (with_periods(510, 100), [0], None),
    "last period of the window": (with_periods(700, 99, 400), [0, 401], None),
    "several": (with_periods(1400, 400, 800), [0, 401, 801, 1311], [0, 401, 801, 1312]),
    "no period": (with_periods(600), [0, 510], [0, 511]),
    "period on the first token only": (with_periods(600, 0), [0, 510], [0, 511]),
    "period on the last token of the window": (with_periods(600, 509), [0, 510], None),
    "period one past the window": (with_periods(600, 510), [0, 510], [0, 511]),
    "period as the very last token": (with_periods(511, 510), [0, 510], [0]),
    "word boundary": ([BEGIN] * 501 + [INSIDE] * 30 + [BEGIN] * 69, [0, 500], [0, 511]),
    "one endless word": ([BEGIN] + [INSIDE] * 1199, [0, 510, 1020], [0, 511, 1022]),
    "period inside a word": (with_periods(600, 300, fill=INSIDE), [0, 301], None),
}


@pytest.mark.parametrize("case", CUTS)
def test_where_chunks_begin(case):
    document, expected, package = CUTS[case]
    starts, documents = cut(toy(document), TOY, package_parity=False)
    assert starts.tolist() == expected
    assert documents.tolist() == [0] * len(expected)
    starts, _ = cut(toy(document), TOY, package_parity=True)
    assert starts.tolist() == (expected if package is None else package)


def test_chunks_of_several_documents():
    """A document's cuts do not move with its neighbours, and a document without tokens has no chunk."""
    documents = [[], *(document for document, _, _ in CUTS.values()), [], [BEGIN], []]
    starts, owners = cut(toy(*documents), TOY, package_parity=False)
    offsets = np.cumsum([0, *map(len, documents)])
    found = [(starts[owners == i] - offsets[i]).tolist() for i in range(len(documents))]
    assert found == [[], *(expected for _, expected, _ in CUTS.values()), [], [0], []]


@pytest.fixture(scope="module", params=["bert", "xlm-roberta"])
def directory(request, tmp_path_factory):
    """A checkpoint in a directory whose name says nothing of its family."""
    place = tmp_path_factory.mktemp("checkpoint") / "mine"
    return save_compressor(place, request.param, small_tokenizer(request.param))


@pytest.fixture(scope="module", params=["packed", "padded"])
def compressor(request, directory):
    """As on a CPU, where texts are packed, and as on a GPU, where they are padded."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "padded":
            patch.setattr(Packing, "_pack", lambda self, model: False)
        compressor = Compressor(Checkpoint.find(str(directory)), batch_tokens=1024)
    assert compressor.packing.packed is (request.param == "packed")
    return compressor


@pytest.fixture
def fed(compressor):
    """Listen to what the model is fed: for every pass a list of rows, each its ids and which of them others see."""
    passes = []

    def listen(module, args, kwargs):
        ids = kwargs["input_ids"]
        if "sequences" in kwargs:
            rows = [(ids[0, own], None if mask is None else mask[0, 0, 0]) for own, mask in kwargs["sequences"]]
            kept = [torch.ones_like(row, dtype=torch.bool) if mask is None else mask == 0 for row, mask in rows]
            passes.append([(row, mask) for (row, _), mask in zip(rows, kept, strict=True)])
        else:
            mask = kwargs[
                "attention_mask"
            ]  # bool [rows, 1, width, width], ready for attention: the same for each query
            seen = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask[:, 0, 0]
            passes.append(list(zip(ids, seen, strict=True)))

    hook = compressor.model.register_forward_pre_hook(listen, with_kwargs=True)
    yield passes
    hook.remove()


def test_the_model_sees_its_own_special_tokens_and_every_token_once(compressor, fed):
    texts = [*(text for text in TRICKY if "[SEP]" not in text), *SAMPLE[:40], MODULES[1]]
    compressor.word_probabilities(texts)
    tokenizer = compressor.tokenizer
    before, after, pad = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id
    assert len({before, after, pad, tokenizer.unk_token_id}) == 4
    found = []
    for rows in fed:
        assert sum(len(row) for row, _ in rows) <= 1024
        for row, kept in rows:
            assert (row[~kept] == pad).all()
            row = row[kept].tolist()
            assert row[:1] == [before][: len(row)]  # nothing is left of a row that only fills up
            assert row[-1:] == [after][: len(row)]
            found += row[1:-1]
    backend = tokenizer.backend_tokenizer
    expected = [token for text in texts for token in backend.encode(text, add_special_tokens=False).ids]
    assert sorted(found) == sorted(expected)
    assert not {before, after, pad} & set(found)


def test_special_tokens_spelled_out_in_a_text_are_text(compressor, fed):
    """So that a text cannot end its own chunk. XLM-R's vocabulary holds the spellings as pieces, so there they stay."""
    text = "before [SEP] and </s> after"
    words = compressor.word_probabilities([text])
    ids = torch.cat([row for rows in fed for row, _ in rows]).tolist()
    assert ids.count(compressor.tokenizer.sep_token_id) == (1 if compressor.rule.marker is None else 2)
    spelled = "".join(text[start:end] for start, end in words.spans)
    assert spelled == text.replace(" ", "")


def test_known_text_gives_no_unknown_token(compressor, fed):
    compressor.word_probabilities(["A plain sentence, of known characters. And one more (short) one!"])
    assert fed
    assert all((row != compressor.tokenizer.unk_token_id).all() for rows in fed for row, _ in rows)


def slow_words(directory, text: str) -> list[tuple[int, int, float]]:
    """One document, one chunk at a time, one token at a time, without padding."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForTokenClassification.from_pretrained(directory).eval()
    sentencepiece = tokenizer.cls_token == "<s>"
    coded = tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
    ids, spans = coded["input_ids"], coded["offset_mapping"]
    tokens = tokenizer.convert_ids_to_tokens(ids)
    punctuation = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"

    def begins(token: str) -> bool:
        if sentencepiece:
            return token.startswith("▁") or token in punctuation
        return not token.startswith("##")

    words, start = [], 0
    while start < len(ids):
        stop = min(start + 510, len(ids))
        if stop < len(ids):
            periods = [place for place in range(start + 1, stop) if tokens[place] == "."]
            boundaries = [place for place in range(start + 1, stop + 1) if begins(tokens[place])]
            stop = periods[-1] + 1 if periods else boundaries[-1] if boundaries else stop
        fed = [tokenizer.cls_token_id, *ids[start:stop], tokenizer.sep_token_id]
        with torch.no_grad():
            keep = model(input_ids=torch.tensor([fed])).logits[0].softmax(-1)[1:-1, 1].tolist()
        merged: list[list] = []
        for place in range(start, stop):
            own = [] if tokens[place] == "▁" and text[spans[place][0]] != "▁" else [spans[place]]
            if place == start or begins(tokens[place]):
                merged.append([own, [keep[place - start]]])
            else:
                merged[-1][0] += own
                merged[-1][1].append(keep[place - start])
        for places, values in merged:
            first, last = (min(places)[0], max(end for _, end in places)) if places else (0, 0)
            words.append((first, last, sum(values) / len(values)))
        start = stop
    return words


def test_words_equal_a_slow_reference(directory, compressor):
    texts = [*TRICKY, *SAMPLE[40:60], MODULES[1][:6000], "words without any stop " * 300, "endless" * 400]
    found = compressor.word_probabilities(texts)
    for document, text in enumerate(texts):
        own = found.documents == document
        expected = slow_words(directory, text)
        np.testing.assert_allclose(found.probabilities[own], [w[2] for w in expected], rtol=0, atol=1e-5)
        spans = [(s, e) if e > s else (0, 0) for s, e in found.spans[own].tolist()]
        assert spans == [w[:2] for w in expected], text


HARD = {
    "one token": "a",
    "only punctuation": "?!... ([{}]) --- ;;",
    "no period or newline": "word " * 20_000,
    "no period, newline or space": "ab" * 50_000,
    "no word boundary at all": "中文" * 50_000,
    "only unknown characters": "☃" * 1000,
}


@pytest.mark.parametrize("case", HARD)
def test_hard_texts_are_scored_everywhere_once(compressor, fed, case):
    text = HARD[case]
    words = compressor.word_probabilities([text])
    # Every character that is not white space lies in exactly one word, and the words follow one another.
    filled = words.spans[words.spans[:, 1] > words.spans[:, 0]]
    assert (filled[1:, 0] >= filled[:-1, 1]).all()
    covered = np.zeros(len(text), dtype=bool)
    for start, end in filled:
        covered[start:end] = True
    assert covered.tolist() == [not character.isspace() for character in text]
    assert ((words.probabilities > 0) & (words.probabilities < 1)).all()
    # Memory is bounded by the budget, and every token is fed once.
    assert max(sum(len(row) for row, _ in rows) for rows in fed) <= 1024
    num_fed = sum(int(kept.sum()) for rows in fed for _, kept in rows)
    num_tokens = len(compressor.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)
    assert num_fed == num_tokens + 2 * words.num_chunks.sum()


@pytest.mark.parametrize("text", ["", " ", "\n\t \u3000"])
def test_nothing_to_score(compressor, text):
    words = compressor.word_probabilities([text, "one", text])
    assert words.num_chunks.tolist() == [0, 1, 0]
    assert words.documents.tolist() == [1] * len(words.documents)
    assert compressor.word_probabilities([text]).num_chunks.tolist() == [0]
    assert compressor.word_probabilities([]).num_chunks.tolist() == []


def test_windows_change_nothing(compressor, monkeypatch):
    """Texts that go through one at a time, each tokenized while another one is scored."""
    texts = [*TRICKY, "", *SAMPLE[:20]]
    whole = compressor.word_probabilities(texts)
    monkeypatch.setattr(compressor_model, "WINDOW_CHARACTERS", 1)
    parts = compressor.word_probabilities(texts)
    np.testing.assert_allclose(parts.probabilities, whole.probabilities, rtol=0, atol=1e-5)
    for name in ("spans", "documents", "num_chunks"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))


def test_characters_of_real_tokens(compressor):
    """Characters that the compressor drops inside a word count as the word's; a lone "▁" takes none from others."""
    text = "x (y) a\x00b\u200bc"
    words = compressor.word_probabilities([text])
    spelled = [text[start:end] for start, end in words.spans if end > start]
    assert spelled[:4] == ["x", "(", "y", ")"] or spelled[:3] == ["x", "(y", ")"]
    assert spelled[-1] == "a\x00b\u200bc"
    spans = np.array([(place, place + 1) for place in range(len(text))])
    owners = np.zeros(len(text), dtype=np.int64)
    scores = align([text], spans, owners, words.spans, words.documents, words.probabilities)
    assert scores.covered.tolist() == [not character.isspace() for character in text]
