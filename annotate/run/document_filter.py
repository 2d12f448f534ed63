"""`annotate select`: the documents of a shard directory that are best by what a grouper says of their top tokens.

What enters: complete shards, a grouper that has a `DocumentFilter`, and two shares. What leaves: a file of document
ids, one a line, best first. Next: `train run --documents FILE`.

The shards are read four times, one at a time: twice to find the threshold, once for the documents' scores, once for the
ids of those that are kept. Held are a few numbers a document, and never tokens.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from annotate.groupers import REGISTRY, grouper_class
from annotate.groupers.base import DocumentFilter
from annotate.run.tables import flat
from common.errors import UserError, raise_together
from common.shards import ShardDirectory
from common.storage import Place, locate


@dataclass(frozen=True)
class Selection:
    """What was kept.

    Attributes:
        documents: of the shards.
        refused: by the grouper's own rule, over all of a document's tokens.
        without_top: that have none of the top tokens, and so no score.
        kept: documents whose ids were written.
        threshold: what the top tokens are above.
        lowest: the score of the last document kept.
        highest: the score of the first one.
    """

    documents: int
    refused: int
    without_top: int
    kept: int
    threshold: float
    lowest: float
    highest: float


def select_documents(shards: Place, grouper: str, share: float, top: float, out: Place) -> Selection:
    """Write the ids of the best ceil(share · documents) to `out`; fewer where fewer have a score.

    Of equal scores the earlier document comes first.

    Args:
        shards: a complete shard directory.
        grouper: the name of a grouper of the directory.
        share: of the documents, in (0, 1].
        top: the share of all supervised tokens that scores are made of, in (0, 1].
        out: the file.

    Raises:
        UserError: a share is out of range, the grouper has no filter or is not there, or no document has a score.
    """
    problems = [
        f"{flag} {value}: expected a share above 0 and at most 1."
        for flag, value in (("--share", share), ("--top", top))
        if not 0 < value <= 1
    ]
    kinds = {name: grouper_class(name).document_filter for name in REGISTRY}
    able = ", ".join(name for name, kind in kinds.items() if kind is not None)
    rule = grouper_class(grouper).document_filter
    if rule is None:
        problems.append(f"--grouper {grouper}: it says nothing of whole documents; expected {able}.")
    raise_together(problems)
    assert rule is not None
    held = ShardDirectory(shards)
    for column in (rule.chooses, rule.averages):
        held.resolve_column(column)
    threshold = -np.inf if top == 1 else find_quantile(lambda: _supervised(held, rule.chooses), 1 - top)
    means, tops, places = [], [], []
    for values, chosen, offsets in _documents(held, rule, threshold):
        mean, _ = _mean(values, np.ones(len(values), dtype=bool), offsets)
        mean_of_top, count = _mean(values, chosen, offsets)
        means.append(rule.accepts(mean))
        tops.append(rule.score(mean_of_top))
        places.append(count > 0)
    accepted, scores, has_top = (np.concatenate([np.zeros(0), *parts]) for parts in (means, tops, places))
    fit = np.flatnonzero((accepted > 0) & (has_top > 0))
    if not len(fit):
        raise UserError(
            f"{held.path}: of {len(scores):,} documents {int((accepted == 0).sum()):,} are refused by {grouper}'s own "
            "rule, and the others have none of the top tokens; nothing was written. Take a larger --top, or others."
        )
    order = fit[np.argsort(-scores[fit], kind="stable")]
    kept = order[: int(-(-Fraction(repr(float(share))) * len(scores) // 1))]
    ids = _ids(held, kept)
    locate(out).write_text("".join(f"{ids[place]}\n" for place in kept.tolist()))
    return Selection(
        documents=len(scores),
        refused=int((accepted == 0).sum()),
        without_top=int(((accepted > 0) & (has_top == 0)).sum()),
        kept=len(kept),
        threshold=float(threshold),
        lowest=float(scores[kept[-1]]),
        highest=float(scores[kept[0]]),
    )


def find_quantile(read: Callable[[], Iterable[np.ndarray]], quantile: float) -> float:
    """Return `numpy.quantile` (linear) of float32 arrays that together need not fit into memory.

    The bits of a float32, turned so that they sort as the numbers do, are counted by their upper half; then the lower
    halves in the one or two bins that hold the order statistics.

    Args:
        read: gives the arrays, finite float32 [any]; called twice.
        quantile: in [0, 1].
    """
    counts = np.zeros(2**16, dtype=np.int64)
    for values in read():
        counts += np.bincount(_sortable(values) >> 16, minlength=2**16)
    total = int(counts.sum())
    if not total:
        return float("nan")
    place = quantile * (total - 1)
    ranks = (int(np.floor(place)), int(np.ceil(place)))
    ends = np.cumsum(counts)
    bins = [int(np.searchsorted(ends, rank, side="right")) for rank in ranks]
    lower = {number: np.zeros(2**16, dtype=np.int64) for number in bins}
    for values in read():
        keys = _sortable(values)
        for number, found in lower.items():
            found += np.bincount(keys[keys >> 16 == number] & 0xFFFF, minlength=2**16)
    below, above = (
        _value((number << 16) + int(np.searchsorted(np.cumsum(lower[number]), rank - before, side="right")))
        for number, rank in zip(bins, ranks, strict=True)
        for before in (int(ends[number] - counts[number]),)
    )
    return below + (above - below) * (place - ranks[0])


def _sortable(values: np.ndarray) -> np.ndarray:
    """Return int64 [any] that sort as these float32 do."""
    bits = (values + np.float32(0)).view(np.uint32).astype(np.int64)  # -0 + 0 is 0
    return np.where(bits >> 31, 0xFFFFFFFF - bits, bits + 0x80000000)


def _value(key: int) -> float:
    """Return the float32 of a key of `_sortable`."""
    bits = key - 0x80000000 if key >= 0x80000000 else 0xFFFFFFFF - key
    return float(np.array(bits, dtype=np.uint32).view(np.float32))


def _supervised(held: ShardDirectory, column: str) -> Iterator[np.ndarray]:
    for table in held.tables(["supervised", column]):
        supervised, values = (flat(table, name) for name in ("supervised", column))
        yield values[supervised]


def _documents(
    held: ShardDirectory, rule: DocumentFilter, threshold: float
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield, of each shard's supervised tokens, the values, which are top tokens, and the documents' offsets."""
    for table in held.tables(["supervised", rule.chooses, rule.averages]):
        supervised, choosing, values = (flat(table, name) for name in table.column_names)
        lengths = table["supervised"].combine_chunks().value_lengths().to_numpy()
        index = np.repeat(np.arange(len(lengths)), lengths)[supervised]
        offsets = np.concatenate([[0], np.cumsum(np.bincount(index, minlength=len(lengths)))])
        yield values[supervised], choosing[supervised] > threshold, offsets


def _mean(values: np.ndarray, mask: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each document's mean over the masked tokens, 0 without any, and their numbers."""
    index = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))[mask]
    number = len(offsets) - 1
    counts = np.bincount(index, minlength=number)
    return np.bincount(index, values[mask].astype(np.float64), number) / np.maximum(counts, 1), counts


def _ids(held: ShardDirectory, places: np.ndarray) -> dict[int, str]:
    """Return the document ids at these places of the directory."""
    found: dict[int, str] = {}
    wanted, before = np.sort(places), 0
    for table in held.tables(["document_id"]):
        here = wanted[(wanted >= before) & (wanted < before + table.num_rows)]
        found |= zip(here.tolist(), table["document_id"].take(here - before).to_pylist(), strict=True)
        before += table.num_rows
    return found
