"""Alignment: hand-computed cases, the real Llama 3 tokenizer's spans, and random Unicode against a slow reference."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annotate.groupers.llmlingua2.alignment import align, shrink

LLAMA_3 = Path(__file__).parents[5] / "shared" / "tokenizers" / "llama-3"

# Text, words as (start, end, value), target tokens as (start, end, expected score or None for no overlap). The tokens
# are the Llama 3 tokenizer's, which the last test confirms where that tokenizer is at hand.
FAMILY = "a 👩‍👩‍👧 b"  # letters, then woman, joiner, woman, joiner, girl
CASES = {
    # (3 characters · 0.2 + 2 · 0.8) / 5 = 0.44 for "belie"; the other tokens lie inside one word.
    "split differently": (
        "unbelievably fast",
        [(0, 5, 0.2), (5, 12, 0.8), (13, 17, 0.6)],
        [(0, 2, 0.2), (2, 7, 0.44), (7, 12, 0.8), (12, 17, 0.6)],
    ),
    "one character over several tokens": (
        "𓀀x",
        [(0, 1, 0.7), (1, 2, 0.1)],
        [(0, 1, 0.7), (0, 1, 0.7), (0, 1, 0.7), (0, 1, 0.7), (1, 2, 0.1)],
    ),
    # The compressor read "½" as "1", "⁄", "2": three words on one character count equally. 0.6 = (0.9 + 0.3 + 0.6) / 3
    "one character over several words": (
        "½ cup",
        [(0, 1, 0.9), (0, 1, 0.3), (0, 1, 0.6), (2, 5, 0.5)],
        [(0, 1, 0.6), (1, 5, 0.5)],
    ),
    # "北京" is half in the word 我爱北 (0.2) and half in 京 (0.8): 0.5.
    "cjk": (
        "我爱北京。",
        [(0, 3, 0.2), (3, 4, 0.8), (4, 5, 0.1)],
        [(0, 1, 0.2), (1, 2, 0.2), (2, 4, 0.5), (4, 5, 0.1)],
    ),
    # The compressor dropped the first joiner, so that character has no word; the second lies inside one.
    "emoji with joiners": (
        FAMILY,
        [(0, 1, 0.1), (2, 3, 0.4), (4, 7, 0.8), (8, 9, 0.3)],
        [
            (0, 1, 0.1),
            (1, 3, 0.4),
            (2, 3, 0.4),
            (3, 4, None),
            *[(4, 5, 0.8)] * 3,
            (5, 6, 0.8),
            *[(6, 7, 0.8)] * 3,
            (7, 9, 0.3),
        ],
    ),
    # The accent of "é" belongs to the word, though stripped of it for the compressor.
    "combining accents": (
        "cafe\u0301 nai\u0308ve",
        [(0, 5, 0.3), (6, 9, 0.9), (9, 12, 0.6)],
        [(0, 2, 0.3), (2, 4, 0.3), (4, 5, 0.3), (5, 7, 0.9), (7, 9, 0.9), (9, 10, 0.6), (10, 12, 0.6)],
    ),
    "control characters": (
        "a\x00b\u200bc \x07d",
        [(0, 1, 0.2), (2, 5, 0.4), (7, 8, 0.6)],
        [
            (0, 1, 0.2),
            (1, 2, None),
            (2, 3, 0.4),
            (3, 4, 0.4),
            (4, 5, 0.4),
            (5, 6, None),
            (6, 7, None),
            (7, 8, 0.6),
        ],
    ),
    "double spaces": ("one  two", [(0, 3, 0.5), (5, 8, 0.7)], [(0, 3, 0.5), (3, 4, None), (4, 8, 0.7)]),
    "tabs and newlines": (
        "a\tb\n\n  c\n",
        [(0, 1, 0.1), (2, 3, 0.2), (7, 8, 0.3)],
        [(0, 1, 0.1), (1, 3, 0.2), (3, 5, None), (5, 6, None), (6, 8, 0.3), (8, 9, None)],
    ),
    # "(x" = (0.4 + 0.6) / 2; "):\n" counts ")" and ":" but not the newline: (0.2 + 0.8) / 2.
    "code": (
        "def f(x):\n    return x+1",
        [
            (0, 3, 0.9),
            (4, 5, 0.3),
            (5, 6, 0.4),
            (6, 7, 0.6),
            (7, 8, 0.2),
            (8, 9, 0.8),
            (14, 20, 0.7),
            (21, 22, 0.5),
            (22, 24, 0.1),
        ],
        [
            (0, 3, 0.9),
            (3, 5, 0.3),
            (5, 7, 0.5),
            (7, 10, 0.5),
            (10, 13, None),
            (13, 20, 0.7),
            (20, 22, 0.5),
            (22, 23, 0.1),
            (23, 24, 0.1),
        ],
    ),
    # A chunk ended inside the target token "vably": the words on both sides are other words with other scores.
    "across a chunk edge": (
        "unbelievably fast",
        [(0, 10, 0.5), (10, 12, 1.0), (13, 17, 0.6)],
        [(0, 2, 0.5), (2, 7, 0.5), (7, 12, (3 * 0.5 + 2 * 1.0) / 5), (12, 17, 0.6)],
    ),
    "empty": ("", [], []),
    "white space only": (" \n\t ", [], [(0, 2, None), (2, 4, None)]),
}


def run(texts, spans, owners, words, word_owners):
    """Call `align` with lists; words are (start, end, value)."""
    table = np.array(words, dtype=np.float64).reshape(-1, 3)
    return align(
        texts,
        np.array(spans, dtype=np.int32).reshape(-1, 2),
        np.array(owners, dtype=np.int64),
        table[:, :2].astype(np.int64),
        np.array(word_owners, dtype=np.int64),
        table[:, 2],
    )


@pytest.mark.parametrize("case", CASES)
def test_hand_computed(case):
    text, words, tokens = CASES[case]
    found = run([text], [token[:2] for token in tokens], [0] * len(tokens), words, [0] * len(words))
    expected = [0.0 if score is None else score for _, _, score in tokens]
    np.testing.assert_allclose(found.scores, expected, rtol=0, atol=1e-7)
    assert found.covered.tolist() == [score is not None for _, _, score in tokens]
    assert found.scores.dtype == np.float32


def test_whole_shard_equals_each_document_alone():
    """All cases in one call, in reverse too, give bit by bit what each gives alone."""
    for names in (list(CASES), list(CASES)[::-1]):
        texts, spans, owners, words, word_owners, alone = [], [], [], [], [], []
        for document, name in enumerate(names):
            text, its_words, tokens = CASES[name]
            texts.append(text)
            spans += [token[:2] for token in tokens]
            owners += [document] * len(tokens)
            words += its_words
            word_owners += [document] * len(its_words)
            alone.append(
                run([text], [t[:2] for t in tokens], [0] * len(tokens), its_words, [0] * len(its_words)).scores
            )
        np.testing.assert_array_equal(run(texts, spans, owners, words, word_owners).scores, np.concatenate(alone))


def test_special_tokens_have_no_overlap():
    """An empty span scores 0 also in the middle of a word and at its edges."""
    found = run(["word"], [(0, 0), (2, 2), (4, 4), (0, 4)], [0] * 4, [(0, 4, 0.9)], [0])
    assert found.covered.tolist() == [False, False, False, True]
    np.testing.assert_array_equal(found.scores, np.float32([0, 0, 0, 0.9]))


def test_tokens_of_one_word_tie_exactly():
    """Equal scores must be equal bit by bit: ties at the threshold are unimportant, and noise would break them."""
    value = float(np.float32(0.1))
    found = run(["abcdefghij"], [(0, 1), (1, 4), (4, 10)], [0] * 3, [(0, 10, value)], [0])
    assert len(set(found.scores.tolist())) == 1


def test_not_a_number_stays_in_its_word():
    found = run(["ab cd"], [(0, 2), (3, 5)], [0, 0], [(0, 2, np.nan), (3, 5, 0.5)], [0, 0])
    assert np.isnan(found.scores[0])
    assert found.scores[1] == np.float32(0.5)


def test_shrink():
    keep = np.array([0, 1, 1, 0, 0, 1, 0], dtype=bool)
    starts, ends = shrink(np.array([0, 0, 3, 4, 1, 7, 2]), np.array([7, 2, 5, 4, 3, 7, 6]), keep)
    assert list(zip(starts.tolist(), ends.tolist(), strict=True)) == [
        (1, 6),
        (1, 2),
        (3, 3),
        (4, 4),
        (1, 3),
        (7, 7),
        (2, 6),
    ]


def slow_align(text, spans, words):
    """The definition, a character at a time: white space at either end of a token or a word does not count."""

    def solid(start, end):
        while start < end and text[start].isspace():
            start += 1
        while end > start and text[end - 1].isspace():
            end -= 1
        return set(range(start, end))

    scores = []
    for start, end in spans:
        weights = [(len(solid(start, end) & solid(a, b)), value) for a, b, value in words]
        total = sum(weight for weight, _ in weights)
        scores.append(sum(weight * value for weight, value in weights) / total if total else None)
    return scores


SPACES = " \t\n\r\x0b\x0c\x1c\x85\xa0\u2003\u2028\u3000"
TEXTS = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(SPACES), st.sampled_from("ab.é́👩‍𓀀中")),
    max_size=30,
)


@st.composite
def documents(draw):
    """A text with tokens and words: overlapping, nested, empty, in any order."""
    text = draw(TEXTS)
    places = st.integers(0, len(text))
    span = st.tuples(places, places).map(lambda pair: (min(pair), max(pair)))
    values = st.floats(0, 1, width=32)
    spans = draw(st.lists(span, max_size=8))
    return text, spans, [(*pair, draw(values)) for pair in draw(st.lists(span, max_size=8))]


@settings(max_examples=200, deadline=None)
@given(st.lists(documents(), max_size=4))
def test_random_unicode_equals_the_definition(batch):
    texts = [text for text, _, _ in batch]
    found = run(
        texts,
        [span for _, spans, _ in batch for span in spans],
        [index for index, (_, spans, _) in enumerate(batch) for _ in spans],
        [word for _, _, words in batch for word in words],
        [index for index, (_, _, words) in enumerate(batch) for _ in words],
    )
    expected = [score for text, spans, words in batch for score in slow_align(text, spans, words)]
    assert found.covered.tolist() == [score is not None for score in expected]
    np.testing.assert_allclose(found.scores, [score or 0.0 for score in expected], rtol=0, atol=1e-6)
    assert np.isfinite(found.scores).all()


@pytest.mark.skipif(not LLAMA_3.is_dir(), reason="needs ../shared/tokenizers/llama-3")
def test_cases_have_the_llama_3_tokens():
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(LLAMA_3 / "tokenizer.json"))
    for text, _, tokens in CASES.values():
        assert tokenizer.encode(text, add_special_tokens=False).offsets == [token[:2] for token in tokens]
