"""From shards to rows: documents cut at a length, with what the plan makes of their scores.

What enters: shard directories and a `GroupPlan`. What leaves: one table a shard with the columns of `row_schema`; which
documents are kept; how many of their tokens are in which group. Next: `loading.py` writes them to Arrow files.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from common.errors import UserError
from common.shards import ShardDirectory
from common.thresholds import num_important
from train.data.grouping import group_numbers, soft_shares
from train.data.permutation import permute_groups, random_reference_losses
from train.data.plan import GroupPlan

GROUP = "group"  # int8: the token's group, 0 where not supervised
SHARE = "share"  # float32: how much of the token belongs to group 1; in place of `group` with soft groups
REFERENCE_LOSS = "reference_loss"  # float32: the reference model's cross-entropy, for groups made at each step
SCORE = "score"  # float32: the score itself
TOKEN_COLUMNS = (GROUP, SHARE, REFERENCE_LOSS, SCORE)


class Rows(NamedTuple):
    """The documents of one shard."""

    table: pa.Table  # the columns of `row_schema`
    document_ids: list[str]
    kept: np.ndarray  # bool [rows]: the document has a supervised token to predict
    tally: np.ndarray  # int64 [rows, 1 + groups]: predicted supervised tokens, and those of each group
    truncated: int


def row_schema(plan: GroupPlan) -> pa.Schema:
    """Return the columns of a row: lists of one length."""
    kinds = {"input_ids": pa.int32(), "supervised": pa.bool_()}
    if plan.column is not None:
        kinds |= {REFERENCE_LOSS: pa.float32()} if plan.dynamic else {}
        kinds |= {SHARE: pa.float32()} if plan.softness is not None else {}
        kinds |= {GROUP: pa.int8()} if not plan.dynamic and plan.softness is None else {}
        kinds |= {SCORE: pa.float32()} if plan.scores else {}
    return pa.schema([(name, pa.list_(kind)) for name, kind in kinds.items()])


def read_rows(
    shards: Sequence[ShardDirectory], plan: GroupPlan, max_length: int, held_out: np.ndarray
) -> Iterator[Rows]:
    """Yield the documents of one shard after the other, in order; `held_out`, bool [documents], says which are."""
    cut = _dataset_cut(shards, plan, max_length) if plan.over == "dataset" else None
    start = 0
    for table, directory in _tables(shards, plan):
        rows = slice(start, start + table.num_rows)
        start = rows.stop
        yield _group(table, plan, max_length, held_out[rows], str(directory.path), cut)


def _tables(shards: Sequence[ShardDirectory], plan: GroupPlan) -> Iterator[tuple[pa.Table, ShardDirectory]]:
    for directory in shards:
        for table in directory.tables(["document_id", "input_ids", "supervised", *plan.columns]):
            yield table, directory


def _dataset_cut(shards: Sequence[ShardDirectory], plan: GroupPlan, max_length: int) -> float:
    """Return the eta-quantile of the scores of all supervised tokens that are predicted (4 bytes a token in memory)."""
    found = [np.zeros(0, dtype=np.float32)]
    for table, directory in _tables(shards, plan):
        flat = _flatten(table, max_length)
        found.append(_scores(table, flat, plan, str(directory.path))[flat.predicted])
    every = np.concatenate(found)
    return float(np.quantile(every.astype(np.float64), plan.eta)) if every.size else 0.0


class _Flat(NamedTuple):
    values: dict[str, np.ndarray]  # by column, [tokens]
    offsets: np.ndarray  # int64 [rows + 1]
    predicted: np.ndarray  # bool [tokens]: supervised, and not the first of its document
    truncated: int


def _flatten(table: pa.Table, max_length: int) -> _Flat:
    """Lay a shard's documents end to end, each cut at `max_length`."""
    lists = {name: table[name].combine_chunks() for name in table.column_names if name != "document_id"}
    offsets = lists["input_ids"].offsets.to_numpy().astype(np.int64)
    offsets -= offsets[0]
    flat = {name: column.flatten().to_numpy(zero_copy_only=False) for name, column in lists.items()}
    lengths = np.diff(offsets)
    truncated = int((lengths > max_length).sum())
    if truncated:
        position = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        flat = {name: values[position < max_length] for name, values in flat.items()}
        lengths = np.minimum(lengths, max_length)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
    predicted = flat["supervised"].copy()
    predicted[offsets[:-1][lengths > 0]] = False  # nothing predicts a document's first token
    return _Flat(flat, offsets, predicted, truncated)


def _scores(table: pa.Table, flat: _Flat, plan: GroupPlan, source: str) -> np.ndarray:
    """Return the scores that groups are made from, float32 [tokens].

    Raises:
        UserError: one of a supervised token is not finite.
    """
    assert plan.column is not None
    scores = flat.values[plan.column]
    if plan.less is not None:
        scores = (scores.astype(np.float64) - flat.values[plan.less]).astype(np.float32)
    bad = np.flatnonzero(_sum_lists(~np.isfinite(scores) & flat.values["supervised"], flat.offsets))
    if bad.size:
        raise UserError(
            f"{source}: column {plan.column!r} of document {table['document_id'][int(bad[0])]} holds NaN or "
            f"infinity ({bad.size} such documents in this shard). Annotate again."
        )
    return scores


def _group(
    table: pa.Table, plan: GroupPlan, max_length: int, held_out: np.ndarray, source: str, cut: float | None
) -> Rows:
    """Cut documents at `max_length` and split their tokens into groups, one shard at a time."""
    flat = _flatten(table, max_length)
    offsets, supervised, predicted = flat.offsets, flat.values["supervised"], flat.predicted
    num_supervised = _sum_lists(predicted, offsets)
    arrays = {"input_ids": flat.values["input_ids"], "supervised": supervised}
    sizes = [num_supervised]
    if plan.column is not None:
        scores = _scores(table, flat, plan, source)
        if plan.dynamic:
            arrays[REFERENCE_LOSS] = scores.astype(np.float32)
            selected = np.array([num_important(plan.eta, int(n)) for n in num_supervised], dtype=np.int64)
            sizes = [num_supervised - selected, selected]
        elif plan.softness is not None:
            arrays[SHARE] = soft_shares(scores, supervised, offsets, plan.eta, plan.softness)
            mostly = _sum_lists((arrays[SHARE] > 0.5) & predicted, offsets)
            sizes = [num_supervised - mostly, mostly]
        else:
            arrays[GROUP] = group_numbers(scores, supervised, offsets, plan, cut)
            sizes = [_sum_lists((arrays[GROUP] == group) & predicted, offsets) for group in range(plan.num_groups)]
        arrays[SCORE] = scores.astype(np.float32)
    schema = row_schema(plan)
    if plan.permute_seed is not None:
        dealt = predicted & ~np.repeat(held_out, np.diff(offsets))
        for name in set(schema.names) & set(TOKEN_COLUMNS):  # by one permutation: a seed gives a document the same
            permute = random_reference_losses if name == REFERENCE_LOSS else permute_groups
            identities = table["document_id"].to_pylist()
            arrays[name] = permute(arrays[name], dealt, offsets, identities, plan.permute_seed)
    columns = [
        pa.ListArray.from_arrays(offsets.astype(np.int32), pa.array(arrays[f.name], f.type.value_type)) for f in schema
    ]
    return Rows(
        pa.table(columns, schema=schema),
        table["document_id"].to_pylist(),
        num_supervised > 0,
        np.stack([num_supervised, *sizes], axis=1),
        flat.truncated,
    )


def _sum_lists(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return the sum of each list's values, int64 [rows]."""
    total = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
    return total[offsets[1:]] - total[offsets[:-1]]
