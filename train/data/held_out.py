"""The held-out documents and the groups of their tokens, by every yardstick: what each run's losses are kept over.

What enters: shards, yardsticks, and what chooses documents. What leaves: `HeldOut`, mapped from a file in the run's
cache, so that the end of a run needs no shards; and, when each token's loss is known, `eval_documents.parquet`:

    document_id           string
    tokens                int64: supervised and predicted
    loss                  float64, nats: the sum over them
    <c>.important_tokens  int64, for each yardstick column c
    <c>.important_loss    float64, nats: the sum over them; the unimportant ones are the rest

Between the two, `train/loop/held_out.py` records the losses. A held-out token is known by its number: its place among
all tokens of all held-out documents. It goes through packing, batches and ranks as a column beside the token.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import UserError
from common.files import atomic_path
from common.manifest import manifest_hash
from common.shards import ShardDirectory
from common.thresholds import important_tokens
from train.data.loading import choose_held_out
from train.data.yardsticks import Yardsticks

if TYPE_CHECKING:
    from datasets import Dataset

TOKEN_NUMBER = "token_number"  # list<int64>: each token's place among all held-out ones
PREDICTED = "predicted"  # list<bool>: supervised, and not a document's first token
DOCUMENTS_NAME = "eval_documents.parquet"
HELD_OUT_NAME = "held_out"  # a directory: the same of other shards, a file each
METADATA_KEY = b"sft_go"


@dataclass(frozen=True)
class HeldOut:
    """The held-out documents that have a token to predict, in the order of the shards."""

    file: Path  # Arrow rows of `_schema`
    yardsticks: Yardsticks

    def rows(self) -> "Dataset":
        """Return the documents as the trainer takes them: `input_ids`, `supervised`, `token_number`."""
        return self._dataset("input_ids", "supervised", TOKEN_NUMBER)

    def numbered(self, rows: "Dataset") -> "Dataset":
        """Return `load_data`'s rows of the same documents with each token's number beside it."""
        from datasets import concatenate_datasets

        assert len(rows) == len(self._dataset(TOKEN_NUMBER)), "load_data holds out the same documents"
        return concatenate_datasets([rows, self._dataset(TOKEN_NUMBER)], axis=1).with_format("numpy")

    def first(self, num: int) -> pa.Table:
        """Return the first `num` documents, or all, with every column of the file."""
        taken: list[pa.RecordBatch] = []
        for batch in self._batches():
            taken.append(batch.slice(0, num - sum(b.num_rows for b in taken)))
            if sum(b.num_rows for b in taken) == num:
                break
        return pa.Table.from_batches(taken, schema=_schema(self.yardsticks))

    def predicted(self) -> np.ndarray:
        """Return which of all held-out tokens a loss is taken of, bool [num_tokens]."""
        return np.concatenate([_flat(batch, PREDICTED) for batch in self._batches()])

    def eval_hash(self) -> str:
        """Return a SHA-256 (hexadecimal) of ids, tokens and supervised masks: equal for runs asked the same."""
        digest = hashlib.sha256()
        for batch in self._batches():
            documents = zip(*(batch[name] for name in ("document_id", "input_ids", "supervised")), strict=True)
            for document_id, ids, supervised in documents:
                name = document_id.as_py().encode()
                digest.update(len(name).to_bytes(8, "little") + name + len(ids.values).to_bytes(8, "little"))
                digest.update(ids.values.to_numpy().astype("<i4").tobytes())
                digest.update(supervised.values.to_numpy(zero_copy_only=False).astype(np.uint8).tobytes())
        return digest.hexdigest()

    def sum_by_document(self, losses: np.ndarray) -> pa.Table:
        """Return the columns of `eval_documents.parquet`; a token without a number makes its document's sums NaN.

        Args:
            losses: float [num_tokens], nats, by the tokens' numbers; read where a token is predicted.
        """
        parts, start = [], 0
        for batch in self._batches():
            offsets = batch[PREDICTED].offsets.to_numpy().astype(np.int64)
            offsets -= offsets[0]
            loss = np.asarray(losses[start : start + offsets[-1]], dtype=np.float64)
            start += offsets[-1]
            columns = {"document_id": batch["document_id"]}
            for tokens, total, mask in (
                ("tokens", "loss", PREDICTED),
                *((f"{c}.important_tokens", f"{c}.important_loss", _mask(c)) for c in self.yardsticks.columns),
            ):
                inside = _flat(batch, mask)
                columns[tokens] = np.add.reduceat(inside, offsets[:-1], dtype=np.int64)
                columns[total] = np.add.reduceat(np.where(inside, loss, 0.0), offsets[:-1])
            parts.append(pa.table(columns))
        return pa.concat_tables(parts)

    def write(self, path: Path, losses: np.ndarray, **facts: Any) -> pa.Table:
        """Write `eval_documents.parquet`, with `facts` beside the yardsticks in its metadata, and return its table."""
        content = {"eval_hash": self.eval_hash(), **dataclasses.asdict(self.yardsticks), **facts}
        table = self.sum_by_document(losses).replace_schema_metadata({METADATA_KEY: json.dumps(content)})
        with atomic_path(path) as temporary:
            pq.write_table(table, temporary, compression="zstd")
        return table

    def _batches(self) -> Iterator[pa.RecordBatch]:
        with pa.memory_map(str(self.file)) as source:
            yield from (batch for batch in pa.ipc.open_stream(source) if batch.num_rows)

    def _dataset(self, *columns: str) -> "Dataset":
        from datasets import Dataset

        return Dataset.from_file(str(self.file)).select_columns(list(columns)).with_format("numpy")


def load_held_out(
    shards: Sequence[ShardDirectory],
    yardsticks: Yardsticks,
    max_length: int,
    eval_fraction: float,
    eval_seed: int,
    cache: Path,
) -> HeldOut:
    """Return the documents that `load_data` holds out by the same settings; the file in `cache` is found there again.

    Raises:
        UserError: a score is not finite.
    """
    identity = [[manifest_hash(s.path) for s in shards], dataclasses.asdict(yardsticks)]
    key = hashlib.sha256(json.dumps([*identity, max_length, eval_fraction, eval_seed]).encode()).hexdigest()[:16]
    file = cache / f"held-out-{key}.arrow"
    if not file.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        held_out = choose_held_out(sum(s.manifest.counts.documents for s in shards), eval_fraction, eval_seed)
        schema = _schema(yardsticks)
        with (
            atomic_path(file) as temporary,
            pa.OSFile(str(temporary), "wb") as sink,
            pa.ipc.new_stream(sink, schema) as stream,
        ):
            for rows in _documents(shards, yardsticks, max_length, held_out):
                stream.write_table(pa.Table.from_pylist(rows, schema=schema))
    return HeldOut(file, yardsticks)


def evaluation_facts(
    model: str, eval_seed: int, eval_fraction: float, shards: Sequence[ShardDirectory]
) -> dict[str, Any]:
    """Return what `eval_documents.parquet` says of its origin, beside the documents and yardsticks."""
    hashes = [manifest_hash(directory.path) for directory in shards]
    return {"eval_seed": eval_seed, "eval_fraction": eval_fraction, "model": model, "manifest_hashes": hashes}


def _schema(yardsticks: Yardsticks) -> pa.Schema:
    masks = [PREDICTED, *map(_mask, yardsticks.columns)]
    return pa.schema(
        [
            ("document_id", pa.string()),
            ("input_ids", pa.list_(pa.int32())),
            ("supervised", pa.list_(pa.bool_())),
            (TOKEN_NUMBER, pa.list_(pa.int64())),
            *((name, pa.list_(pa.bool_())) for name in masks),
        ]
    )


def _documents(
    shards: Sequence[ShardDirectory], yardsticks: Yardsticks, max_length: int, held_out: np.ndarray
) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of one shard after another."""
    row = number = 0
    for directory in shards:
        for table in directory.tables(["document_id", "input_ids", "supervised", *yardsticks.columns]):
            chosen = table.filter(pa.array(held_out[row : row + table.num_rows]))
            row += table.num_rows
            rows = []
            for document in (chosen.slice(index, 1).to_pydict() for index in range(chosen.num_rows)):
                content = {name: value[0][:max_length] for name, value in document.items() if name != "document_id"}
                supervised = np.asarray(content["supervised"], dtype=bool)
                predicted = supervised.copy()
                predicted[:1] = False
                if not predicted.any():
                    continue
                made = {"document_id": document["document_id"][0], "input_ids": content["input_ids"]}
                made |= {"supervised": supervised, PREDICTED: predicted}
                made[TOKEN_NUMBER] = np.arange(number, number + len(supervised))
                number += len(supervised)
                for name in yardsticks.columns:
                    scores = np.asarray(content[name], dtype=np.float32)
                    if not np.isfinite(scores[supervised]).all():
                        raise UserError(
                            f"{directory.path}: column {name!r} of document {made['document_id']} holds NaN or "
                            "infinity. Annotate again, or leave the column out of --eval_groupers."
                        )
                    groups = important_tokens(scores, supervised, yardsticks.eta, yardsticks.ties)
                    made[_mask(name)] = groups.important & predicted
                rows.append(made)
            yield rows


def _mask(column: str) -> str:
    return f"{column}.important"


def _flat(batch: pa.RecordBatch, name: str) -> np.ndarray:
    return batch[name].flatten().to_numpy(zero_copy_only=False)
