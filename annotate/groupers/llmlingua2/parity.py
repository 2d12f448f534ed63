"""What the `llmlingua` package 0.2.2 feeds its models, for `--package-parity`.

What enters: tokens of texts. What leaves: chunks equal to the package's. It differs from `make_chunks` in what follows:

- a chunk may have 511 tokens, its end-of-chunk rule knows no word boundaries;
- a chunk is written back to text and tokenized again, which changes tokens where a chunk begins inside a word, and the
  special tokens are [CLS] and [SEP] whatever the tokenizer, so XLM-R sees <unk>; what does not fit into 512 is dropped,
  the closing token first;
- special tokens count in no word, also where the text holds them or a character is unknown; a literal [PAD] is masked.

Two of its quirks stay out: it fails on a chunk whose first word has no beginning (here the word begins there), and it
adds a hundred tokens "[NEW0]" … with random embeddings to the vocabulary, so texts that spell one differ.
"""

from difflib import SequenceMatcher
from typing import Any

import numpy as np

from annotate.groupers.llmlingua2.alignment import shrink
from annotate.groupers.llmlingua2.chunks import Chunks, cut, first_counted, tokenize
from annotate.groupers.llmlingua2.rule import WordRule

MAX_INPUT = 512


def make_package_chunks(tokenizer: Any, texts: list[str], rule: WordRule) -> Chunks:
    """Cut texts into the package's chunks; characters stay those of `texts`."""
    backend = tokenizer.backend_tokenizer
    first, encodings = tokenize(backend, texts, rule.marker)
    starts, documents = cut(first, rule, package_parity=True)
    stops = np.minimum(np.append(starts[1:], len(first.ids)), first.offsets[documents + 1])
    strings: list[str] = []
    document, pieces = -1, []
    for chunk, owner in enumerate(documents):
        if owner != document:
            document, pieces = owner, encodings[owner].tokens
        base = first.offsets[owner]
        strings.append(tokenizer.convert_tokens_to_string(pieces[starts[chunk] - base : stops[chunk] - base]))
    again, _ = tokenize(backend, strings, rule.marker)

    lengths = np.minimum(np.diff(again.offsets), MAX_INPUT - 1)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    kept = np.arange(len(again.ids)) - np.repeat(again.offsets[:-1], np.diff(again.offsets)) < MAX_INPUT - 1
    ids = again.ids[kept]
    spans = np.empty((len(ids), 2), np.int64)
    for chunk, owner in enumerate(documents):
        old = slice(starts[chunk], stops[chunk])
        new = slice(again.offsets[chunk], again.offsets[chunk + 1])
        if np.array_equal(first.ids[old], again.ids[new]):
            found = first.spans[old]
        else:
            found = _carry(
                texts[owner], first.ids[old], first.spans[old], strings[chunk], again.ids[new], again.spans[new]
            )
        spans[offsets[chunk] : offsets[chunk + 1]] = found[: lengths[chunk]]

    pad = backend.token_to_id("[PAD]")
    attended = np.ones(len(ids), dtype=bool) if pad is None else ids != pad
    counted = attended & ~rule.special[ids]
    begins = rule.begins[ids]
    begins[first_counted(counted, offsets)] = True
    closed = lengths <= MAX_INPUT - 2
    return Chunks(ids, spans, begins, counted, attended, offsets, documents, closed, len(texts))


def _carry(
    text: str, ids: np.ndarray, spans: np.ndarray, new_text: str, new_ids: np.ndarray, new_spans: np.ndarray
) -> np.ndarray:
    """Return the characters of `text` that the tokens of `new_text` stand for, int64 [num_new, 2].

    `ids` and `spans` are the tokens that `new_text` was written from. What is equal at both ends is taken over; between
    them, characters are matched, and a token without a match gets an empty span.
    """
    result = np.zeros((len(new_ids), 2), np.int64)
    shorter = min(len(ids), len(new_ids))
    head = _equal_run(ids[:shorter], new_ids[:shorter])
    tail = _equal_run(ids[::-1][: shorter - head], new_ids[::-1][: shorter - head])
    result[:head] = spans[:head]
    result[len(new_ids) - tail :] = spans[len(ids) - tail :]
    middle, new_middle = spans[head : len(ids) - tail], new_spans[head : len(new_ids) - tail]
    if len(middle) == 0 or len(new_middle) == 0:
        return result
    start, stop = int(middle[:, 0].min()), int(middle[:, 1].max())
    new_start, new_stop = int(new_middle[:, 0].min()), int(new_middle[:, 1].max())
    matcher = SequenceMatcher(None, text[start:stop], new_text[new_start:new_stop], autojunk=False)
    place = np.full(new_stop - new_start + 1, -1)
    for here, there, size in matcher.get_matching_blocks():
        place[there : there + size] = start + here + np.arange(size)
    firsts, ends = shrink(new_middle[:, 0] - new_start, new_middle[:, 1] - new_start, place >= 0)
    matched = ends > firsts
    result[head : len(new_ids) - tail][matched, 0] = place[firsts[matched]]
    result[head : len(new_ids) - tail][matched, 1] = place[ends[matched] - 1] + 1
    return result


def _equal_run(left: np.ndarray, right: np.ndarray) -> int:
    """Return how many leading elements of two arrays of one length are equal."""
    different = np.flatnonzero(left != right)
    return int(different[0]) if different.size else len(left)
