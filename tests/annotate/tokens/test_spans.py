"""Spans from a finished shard's text and tokens are those that the source gives."""

import dataclasses

import numpy as np

from annotate.tokens.spans import with_spans
from annotate.tokens.target import load_target
from annotate.tokens.templates import Segment

DOCUMENTS = [
    [("Question: naïve 漢字?\nAnswer: ", False), ("Yes 🙂 indeed.", True), None],
    [
        ("User: a\nAssistant: ", False),
        ("b", True),
        None,
        ("\nUser: <|end_of_text|>\nAssistant: ", False),
        ("c  ", True),
        None,
    ],
    [("all of it is supervised", True), None],
]


def segments(document, eos: str) -> list[Segment]:
    return [Segment(eos, True, special=True) if part is None else Segment(*part) for part in document]


def test_spans_are_those_of_the_source(sample_tokenizer):
    target = load_target(str(sample_tokenizer))
    documents = [segments(document, target.tokenizer.eos_token) for document in DOCUMENTS]
    names = [str(number) for number in range(len(documents))]
    expected = target.tokenize(documents, names, list(range(len(names))), 4096, with_spans=True).batch
    found, lost = with_spans(dataclasses.replace(expected, spans=None), target)
    assert lost == []
    np.testing.assert_array_equal(found.spans, expected.spans)


def test_a_document_whose_tokens_are_not_those_of_its_text_is_named(sample_tokenizer):
    target = load_target(str(sample_tokenizer))
    documents = [segments(document, target.tokenizer.eos_token) for document in DOCUMENTS]
    batch = target.tokenize(documents, ["a", "b", "c"], [0, 1, 2], 4096, with_spans=False).batch
    batch = dataclasses.replace(batch, texts=[batch.texts[0], "something else", batch.texts[2]])
    found, lost = with_spans(batch, target)
    assert lost == ["b"]
    assert not found.spans[found.tokens_of(1)].any()
    assert found.spans[found.tokens_of(2)].any()
