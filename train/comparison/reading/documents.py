"""The held-out documents of a run: columns of losses, by every yardstick.

What enters: `eval_documents.parquet` of each run, and `held_out/<name>.parquet`, the same of other shards. What leaves:
columns over documents: the loss of all tokens, and by the groups of each score column the loss of important, of
unimportant tokens, and of the worse of the two. Next: `columns.py`.

A yardstick's groups depend on eta and on the tie rule, so both are in its name: runs measured by other groups
are in other columns, and are never subtracted.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from train.comparison.reading.runs import DOCUMENTS_NAME, HELD_OUT_NAME, Run
from train.comparison.statistics.measures import Measure, ratio

ITEM_SET = "held-out documents"
METADATA_KEY = b"sft_go"


@dataclass(frozen=True)
class Documents:
    """Held-out documents of one run."""

    path: Path
    name: str  # of the set: "" of the run's own shards
    ids: tuple[str, ...]
    metadata: dict[str, Any]
    table: dict[str, np.ndarray]  # tokens, loss, <column>.important_tokens, <column>.important_loss

    @property
    def eval_hash(self) -> str | None:
        """What tells whether two runs were asked the same."""
        return self.metadata.get("eval_hash")


def read_documents(run: Run) -> dict[str, Documents]:
    """Return a run's sets of held-out documents by name, its own ("") first.

    Raises:
        UserError: a file is damaged, or not what `train run` writes.
    """
    own, others = run.directory / DOCUMENTS_NAME, run.directory / HELD_OUT_NAME
    found = {"": own} if own.is_file() else {}
    found |= {path.stem: path for path in sorted(others.glob("*.parquet"))}
    return {name: _read(path, name) for name, path in found.items()}


def _read(path: Path, name: str) -> Documents:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        metadata = json.loads((table.schema.metadata or {}).get(METADATA_KEY, b"{}"))
        numbers = {
            name: table[name].to_numpy(zero_copy_only=False).astype(np.float64)
            for name in table.column_names
            if name != "document_id"
        }
        ids = tuple(table["document_id"].to_pylist())
        missing = {"tokens", "loss"} - set(numbers)
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise UserError(
            f"{path}: expected the held-out losses that `train run` writes, found a file that cannot be read "
            f"({error}). "
            "`train evaluate` writes it anew."
        ) from error
    if missing:
        raise UserError(f"{path}: expected the columns document_id, tokens and loss; {', '.join(missing)} is missing.")
    return Documents(path, name, ids, metadata, numbers)


def document_measures(documents: Documents) -> dict[tuple[str, str], Measure]:
    """Return {(yardstick, group): measure}; ("", "all") is the loss of all tokens, in nats a token."""
    table, items = documents.table, f"{ITEM_SET} {documents.name}"
    tokens, loss = table["tokens"], table["loss"]
    measures = {("", "all"): ratio(items, loss, tokens)}
    for column in yardsticks(documents):
        count, part = table[f"{column}.important_tokens"], table[f"{column}.important_loss"]
        label = yardstick_label(documents, column)
        groups = {
            "important": ratio(items, part, count),
            "unimportant": ratio(items, loss - part, tokens - count),
        }
        present = [measure for measure in groups.values() if not np.isnan(measure.value) or measure.parts]
        measures |= {(label, group): measure for group, measure in groups.items() if measure in present}
        if len(present) == 2:
            measures[label, "worst"] = max(present, key=lambda measure: (np.isnan(measure.value), measure.value))
    return measures


def yardsticks(documents: Documents) -> list[str]:
    """Return the score columns whose groups the losses were kept by."""
    names = [name.removesuffix(".important_tokens") for name in documents.table if name.endswith(".important_tokens")]
    return [name for name in names if f"{name}.important_loss" in documents.table]


def yardstick_label(documents: Documents, column: str) -> str:
    """Return a yardstick's name: the score column and what made groups of it."""
    eta, ties = documents.metadata.get("eta"), documents.metadata.get("ties", "threshold")
    label = column if eta is None else f"{column}, eta {eta:g}"
    return label if ties == "threshold" else f"{label}, {ties} rule"


def check_same_documents(held: Sequence[Documents]) -> list[str]:
    """Return what differs between held-out documents that say they are the same, one sentence each."""
    problems = []
    for other in held[1:]:
        if other.ids != held[0].ids:
            problems.append(
                f"{other.path} and {held[0].path}: expected the same documents in the same order (one eval_hash), "
                f"found {len(other.ids)} and {len(held[0].ids)} of which {len(set(other.ids) & set(held[0].ids))} "
                f"in both."
            )
        elif not np.array_equal(other.table["tokens"], held[0].table["tokens"]):
            problems.append(f"{other.path} and {held[0].path}: expected as many tokens in each document, found others.")
    return problems
