"""Cutting long texts before they are tokenized changes no token that is kept."""

import random

import pytest

from annotate.tokens import shortening
from annotate.tokens.shortening import head_of, shorten
from annotate.tokens.target import load_target
from annotate.tokens.templates import Segment

WORDS = [
    "the",
    "of",
    "Zebra",
    "don't",
    "12345",
    "\n\n",
    "",
    "",
    "\t",
    "é漢字🙂",
    "naïve",
    "http://x.y/z",
    ",.;:!?",
    "aaaaaaaa",
]


def texts() -> dict[str, str]:
    """Return long texts of several kinds."""
    chance = random.Random(3)
    return {
        "words": " ".join(chance.choice(WORDS) for _ in range(8_000)),
        "one word": "abcdefgh" * 4_000,
        "one letter": "a" * 30_000,
        "white space": " " * 15_000 + "x" + "\n" * 15_000,
        "digits": "".join(chance.choice("0123456789") for _ in range(30_000)),
        "no spaces": "".join(chance.choice("漢字仮名交じり文。🙂") for _ in range(20_000)),
    }


@pytest.mark.parametrize("kind", texts())
@pytest.mark.parametrize("max_length", [16, 700])
def test_the_tokens_that_are_kept_are_those_of_the_whole(sample_tokenizer, monkeypatch, kind, max_length):
    monkeypatch.setattr(shortening, "LONG_CHARACTERS", 1000)
    monkeypatch.setattr(shortening, "HEAD_CHARACTERS", 2000)
    target, text = load_target(str(sample_tokenizer)), texts()[kind]
    end = Segment(target.tokenizer.eos_token, True, special=True)
    for document in (
        [Segment(text, True), end],
        [Segment("Question\n", False), Segment(text, True), end, Segment(text, True)],
        [Segment(text[:500], False), Segment("short", True), end],
    ):
        short = shorten(document, target, max_length)
        assert sum(len(segment.text) for segment in short) <= sum(len(segment.text) for segment in document)
        whole = target.tokenize([document], ["x"], [0], max_length, with_spans=True)
        found = target.tokenize([short], ["x"], [0], max_length, with_spans=True)
        assert found.num_truncated == whole.num_truncated
        assert found.unsupervised == whole.unsupervised
        assert found.batch.texts == whole.batch.texts
        for name in ("input_ids", "supervised", "spans", "offsets"):
            assert getattr(found.batch, name).tolist() == getattr(whole.batch, name).tolist(), name


def test_most_of_a_long_text_is_not_looked_at(sample_tokenizer):
    target = load_target(str(sample_tokenizer))
    assert len(head_of("one two three. " * 1_000_000, 4096, target)) < 100_000


def test_short_documents_stay_as_they_are(sample_tokenizer):
    target = load_target(str(sample_tokenizer))
    document = [Segment("a b c", True)]
    assert shorten(document, target, 2) is document
