"""Pieces of long documents: joined they are the document; each fits; each ends at the best border there is."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annotate.tokens.splitting import split_document
from annotate.tokens.target import TargetTokenizer
from annotate.tokens.templates import Segment

EOS = Segment("<|eos|>", True, True)


@pytest.fixture(scope="module")
def target(sample_tokenizer):
    return TargetTokenizer(str(sample_tokenizer))


def lengths(pieces, target):
    found = target.tokenize(pieces, ["d"] * len(pieces), range(len(pieces)), 10**6, with_spans=False)
    counts = dict.fromkeys(range(len(pieces)), None)
    for row, length in zip(found.batch.source_rows, found.batch.lengths, strict=True):
        counts[int(row)] = int(length)
    return counts


def texts(pieces):
    return ["".join(segment.text for segment in piece) for piece in pieces]


def test_what_fits_stays_whole(target):
    document = [Segment("User: q\nAssistant: ", False), Segment("a", True), EOS]
    assert split_document(document, target, 64) == [document]


def test_turns_first(target):
    rounds = [
        part
        for number in range(6)
        for part in (Segment(f"\nUser: question {number}\nAssistant: ", False), Segment(f"Answer {number}.", True), EOS)
    ]
    pieces = split_document(rounds, target, 40)
    assert len(pieces) > 1
    assert all(piece[0].text.startswith("\nUser: ") and piece[-1] == EOS for piece in pieces)
    assert [segment for piece in pieces for segment in piece] == rounds


def test_then_sentences_then_words_then_tokens(target):
    text = "One two three. Four five six! Seven eight nine? Ten eleven twelve."
    assert texts(split_document([Segment(text, True), EOS], target, 12))[0] in (
        "One two three.",
        "One two three. Four five six!",
    )
    words = " ".join(["word"] * 30)
    for piece in texts(split_document([Segment(words, True), EOS], target, 10))[:-1]:
        assert piece.strip().split() == ["word"] * piece.count("word")
    pieces = split_document([Segment("x" * 200, True), EOS], target, 10)
    assert "".join(texts(pieces)) == "x" * 200 + EOS.text
    chinese = "今天天气很好。我们去公园。"
    assert texts(split_document([Segment(chinese * 3, True), EOS], target, 40))[0].endswith("。")


def test_an_end_of_turn_token_never_stands_alone(target):
    text = "One two three. Four five six."
    whole = len(target.backend.encode(text, add_special_tokens=False)) + len(target.prefix)
    pieces = split_document([Segment(text, True), EOS], target, whole)  # all but the end-of-turn token would fit
    assert len(pieces) == 2
    assert len(pieces[1]) == 2
    assert pieces[1][-1] == EOS


PARTS = st.tuples(st.text(st.sampled_from("ab .\n。é日🙂"), min_size=1, max_size=80), st.booleans())


@settings(max_examples=60, deadline=None)
@given(parts=st.lists(PARTS, min_size=1, max_size=5), max_length=st.integers(8, 40))
def test_joined_they_are_the_document_and_each_fits(target, parts, max_length):
    document = []
    for text, supervised in parts:
        document += [Segment(text, supervised)] + ([EOS] if supervised else [])
    pieces = split_document(document, target, max_length)
    assert "".join(texts(pieces)) == "".join(segment.text for segment in document)
    marked = lambda segments: "".join(segment.text * segment.supervised for segment in segments)  # noqa: E731
    assert marked(segment for piece in pieces for segment in piece) == marked(document)
    assert all(length is None or length <= max_length for length in lengths(pieces, target).values())
    assert all(piece for piece in pieces)
