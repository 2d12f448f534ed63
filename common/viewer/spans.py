"""From the tokens of a shard back to their characters. Shards hold no spans: the text and the ids determine them.

What enters: a document's text, ids and supervised mask, and its tokenizer. What leaves: the span of every token. Next:
`annotate.views.inspection` draws them. The service has spans from the start and needs only `token_texts`.

Segments were tokenized one by one and special tokens come from templates alone, so a run of ordinary tokens with equal
`supervised`, between special tokens or at a change, is a whole segment (or, under some chat templates, several). The
runs' texts joined are the document's text. A run's end is guessed, and the guess is kept only if tokenizing these
characters gives exactly the run's ids: then its spans are the ones that annotation had. Where no guess holds, such as
in the last word of a document that was cut, spans are approximate from there to the end of the run.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np


class Target(Protocol):
    """The tokenizer that the shards were made with, whoever loaded it."""

    @property
    def tokenizer(self) -> Any:
        """A fast tokenizer of transformers."""

    @property
    def backend(self) -> Any:
        """Its Rust tokenizer, without padding or truncation."""


class Spans(NamedTuple):
    """What `recover_spans` returns."""

    spans: np.ndarray  # int32 [num_tokens, 2]: characters [start, end) in code points
    num_approximate: int  # tokens whose span could not be verified


def special_tokens(target: Target) -> dict[int, str]:
    """Return the special tokens that templates write, by id. The unknown token stands for characters: it is not one."""
    added = target.tokenizer.added_tokens_decoder.items()
    return {index: token.content for index, token in added if token.special and index != target.tokenizer.unk_token_id}


def token_texts(text: str, input_ids: np.ndarray, spans: np.ndarray, specials: Mapping[int, str]) -> list[str]:
    """Return each token's characters; a special token, which has none, is called by its name."""
    return [
        text[start:end] if start < end else specials.get(token, "")
        for token, (start, end) in zip(input_ids.tolist(), spans.tolist(), strict=True)
    ]


def recover_spans(text: str, input_ids: np.ndarray, supervised: np.ndarray, target: Target) -> Spans:
    """Find the characters of every token.

    Args:
        text: the document's text, as its shard holds it.
        input_ids: int [num_tokens].
        supervised: bool [num_tokens].
        target: the tokenizer that the shards were made with.
    """
    special = np.isin(input_ids, list(special_tokens(target)))
    spans = np.zeros((len(input_ids), 2), dtype=np.int32)
    runs = list(_runs(special, supervised))
    ordinary = [number for number, (start, _) in enumerate(runs) if not special[start]]
    at, approximate = 0, 0
    for number, (start, stop) in enumerate(runs):
        if special[start]:
            spans[start:stop] = at
            continue
        is_last = bool(ordinary) and number == ordinary[-1]
        found, at_next, missed = _locate(text, at, input_ids[start:stop].tolist(), is_last, target)
        spans[start:stop] = found
        approximate += missed
        at = at_next
    return Spans(spans, approximate)


def _runs(special: np.ndarray, supervised: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield [start, stop) of the longest runs of tokens that are alike."""
    if not special.size:
        return
    changes = np.flatnonzero((np.diff(special) != 0) | (np.diff(supervised) != 0)) + 1
    edges = [0, *changes.tolist(), special.size]
    yield from pairwise(edges)


def _locate(text: str, at: int, ids: list[int], is_last: bool, target: Target) -> tuple[np.ndarray, int, int]:
    """Return a run's spans, the character where it ends, and the number of tokens that could not be verified."""
    backend = target.backend
    for end in _ends(text, at, ids, is_last, target):
        encoding = backend.encode(text[at:end], add_special_tokens=False)
        if encoding.ids == ids:
            return _offsets(encoding.offsets, at), end, 0
    # Keep what agrees, and estimate the rest by how long each token is when it is decoded alone.
    encoding = backend.encode(text[at:], add_special_tokens=False)
    agree = next((k for k, pair in enumerate(zip(ids, encoding.ids, strict=False)) if pair[0] != pair[1]), None)
    agree = min(len(ids), len(encoding.ids)) if agree is None else agree
    kept = _offsets(encoding.offsets[:agree], at)
    start = int(kept[-1, 1]) if agree else at
    lengths = list(map(len, backend.decode_batch([[token] for token in ids[agree:]], skip_special_tokens=False)))
    ends = np.minimum(start + np.cumsum(lengths, dtype=np.int64), len(text))
    rest = np.stack([np.concatenate([[start], ends[:-1]]), ends], axis=1) if lengths else np.zeros((0, 2))
    end = len(text) if is_last else int(rest[-1, 1]) if lengths else start
    return np.concatenate([kept, rest]).astype(np.int32), end, len(ids) - agree


def _ends(text: str, at: int, ids: list[int], is_last: bool, target: Target) -> Iterator[int]:
    """Yield guesses of the character where a run ends, the likely ones first."""
    if is_last:
        yield len(text)
    decoded = target.backend.decode(ids, skip_special_tokens=False)
    if text.startswith(decoded, at):
        yield at + len(decoded)
    # Decoders of some tokenizers change white space; then the rest of the text, tokenized, tells how far the run goes.
    offsets = target.backend.encode(text[at:], add_special_tokens=False).offsets
    if len(offsets) > len(ids):
        yield at + offsets[len(ids) - 1][1]
        yield at + offsets[len(ids)][0]


def _offsets(offsets: Sequence[tuple[int, int]], at: int) -> np.ndarray:
    return np.asarray(offsets, dtype=np.int32).reshape(-1, 2) + np.int32(at)
