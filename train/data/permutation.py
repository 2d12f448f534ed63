"""The matched control: a document's own groups, dealt out among its tokens by chance (`--permute_groups`).

What enters: the groups of a shard's documents, after cuts and thresholds. What leaves: as many tokens of each group in
every document, in other places. Next: `loading.py` writes them in the place of the grouper's.

Dealt out are the groups of the tokens that the loss is taken over: supervised, and predicted. A document's first token
is predicted by nothing, so its group stays; otherwise a group could lose a member to it. Labels are moved, not scores:
ties are broken by position, so moved scores would favour the beginning of a document.

Groups of an excess loss are made anew at each step and cannot be moved beforehand. There the reference losses are
replaced by chance, far below any loss: the rank rule then selects as many tokens as ever, and which ones is chance.
"""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

SPREAD = 1e6  # nats: what chance moves a rank by; a model's loss moves it by ten or so


def permute_groups(
    groups: np.ndarray, dealt: np.ndarray, offsets: np.ndarray, document_ids: Sequence[str], seed: int
) -> np.ndarray:
    """Return `groups` with its values permuted, in each document, among the tokens that are `dealt`.

    Which goes where depends on `seed`, the document's id and its number of dealt tokens alone; equal documents have
    different ids and are permuted differently.

    Args:
        groups: [num_tokens], any dtype; flattened lists of documents.
        dealt: bool [num_tokens]; the others keep their value.
        offsets: int64 [num_documents + 1]: where each document begins.
        document_ids: [num_documents].
        seed: the run's.
    """
    out = groups.copy()
    for positions, generator in _documents(dealt, offsets, document_ids, seed):
        out[positions] = groups[generator.permutation(positions)]
    return out


def random_reference_losses(
    losses: np.ndarray, dealt: np.ndarray, offsets: np.ndarray, document_ids: Sequence[str], seed: int
) -> np.ndarray:
    """Return float32 [num_tokens]: `losses`, but uniform in (-1e6, 0] where `dealt`; arguments as above."""
    out = losses.astype(np.float32)
    for positions, generator in _documents(dealt, offsets, document_ids, seed):
        out[positions] = -SPREAD * generator.random(len(positions), dtype=np.float32)
    return out


def _documents(
    dealt: np.ndarray, offsets: np.ndarray, document_ids: Sequence[str], seed: int
) -> Iterator[tuple[np.ndarray, np.random.Generator]]:
    """Yield each document's dealt positions, and a generator of its own; another than the grouper `random` has."""
    for document_id, (start, end) in zip(document_ids, pairwise(offsets), strict=True):
        positions = start + np.flatnonzero(dealt[start:end])
        if len(positions):
            digest = hashlib.blake2b(f"permute_groups:{seed}:{document_id}".encode(), digest_size=16).digest()
            yield positions, np.random.default_rng(int.from_bytes(digest, "little"))
