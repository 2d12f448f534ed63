"""`token_losses.parquet`: what each token of a few held-out documents cost before the first step and after the last.

What enters: the first documents of `HeldOut` and their tokens' losses. What leaves: one row a document and moment:

    document_id    string
    step           int64: 0 before the first optimizer step
    input_ids      list<int32>
    supervised     list<bool>
    loss           list<float32>, nats; null where no loss is taken (not supervised, or a document's first token)
    <c>.important  list<bool>, for each yardstick column c: the groups of `eval_documents.parquet`

Next: `train inspect` draws them.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from common.errors import UserError
from common.files import atomic_path
from train.data.held_out import METADATA_KEY, PREDICTED, TOKEN_NUMBER, HeldOut

LOSSES_NAME = "token_losses.parquet"


def losses_table(held_out: HeldOut, num: int, step: int, losses: np.ndarray) -> pa.Table:
    """Return the rows of the first `num` held-out documents after `step`.

    Args:
        held_out: the documents.
        num: how many of them; all, where there are fewer.
        step: optimizer steps that the model has made.
        losses: float [num_tokens], nats, by the tokens' numbers; read where a token is predicted.
    """
    rows = held_out.first(num)
    loss = np.asarray(losses, dtype=np.float32)
    numbers, predicted = (_joined(rows[name]) for name in (TOKEN_NUMBER, PREDICTED))
    flat = pa.array(loss[numbers], mask=~predicted, from_pandas=False)
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in rows["input_ids"]])]).astype(np.int32)
    masks = [name for name in rows.column_names if name.endswith(".important")]
    columns = {
        "document_id": rows["document_id"],
        "step": np.full(rows.num_rows, step, dtype=np.int64),
        "input_ids": rows["input_ids"],
        "supervised": rows["supervised"],
        "loss": pa.ListArray.from_arrays(pa.array(offsets), flat),
        **{name: rows[name] for name in masks},
    }
    facts = {"eval_hash": held_out.eval_hash(), "asked": num, **_groups(held_out)}
    return pa.table(columns).replace_schema_metadata({METADATA_KEY: json.dumps(facts)})


def write_losses(path: Path, *tables: pa.Table) -> None:
    """Write the rows of one moment after another."""
    with atomic_path(path) as temporary:
        pq.write_table(pa.concat_tables(tables), temporary, compression="zstd")


def read_losses(path: Path) -> tuple[pa.Table, dict[str, Any]]:
    """Return the file's rows and its facts.

    Raises:
        UserError: it is missing, or another kind of file.
    """
    try:
        table = pq.read_table(path)
        return table, json.loads(table.schema.metadata[METADATA_KEY])
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: found no such file. A run keeps it with --eval_fraction and --token_losses N: the losses of the "
            "tokens of N held-out documents, before and after."
        ) from error
    except (pa.ArrowInvalid, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: expected token losses of a run, found what cannot be read ({error}).") from error


def before_losses(path: Path, held_out: HeldOut, num: int) -> pa.Table:
    """Return the rows before the first step that a run left which is to be gone on with.

    Raises:
        UserError: they are missing, or of other documents or groups.
    """
    if not path.is_file():
        raise UserError(
            f"--token_losses: the run that is to be gone on with has kept no {path}, and what tokens cost before its "
            "first step cannot be known any more; remove the flag, or begin anew."
        )
    table, facts = read_losses(path)
    now = json.loads(json.dumps({"asked": num, "eval_hash": held_out.eval_hash()} | _groups(held_out)))
    if changed := [
        f"{name} was {facts.get(name)}, is {value}" for name, value in now.items() if facts.get(name) != value
    ]:
        raise UserError(
            f"{path}: was kept by other settings ({'; '.join(changed)}), and what tokens cost before the first step "
            "cannot be known any more. Give the same --token_losses, held-out documents and groups, or go on without."
        )
    return table.filter(pc.equal(table["step"], 0))


def _groups(held_out: HeldOut) -> dict[str, Any]:
    return dataclasses.asdict(held_out.yardsticks)


def _joined(column: pa.ChunkedArray) -> np.ndarray:
    return np.concatenate([chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks])
