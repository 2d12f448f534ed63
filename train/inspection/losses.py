"""What a run has kept of its tokens' losses, before and after, beside the text and scores of its shards.

What enters: a run's directory. What leaves: `RunLosses`, with one `Document` each. Next: `views.py` makes panels of
them.

Scores and texts are the shards': those that run.json names, which must still be there and be the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from common.errors import UserError, raise_together
from common.files import read_json
from common.shards import ShardDirectory
from train.data.token_losses import LOSSES_NAME, read_losses

RUN_NAME = "run.json"


@dataclass
class Document:
    """A held-out document; all arrays have one value a token, float64 in nats for losses, NaN where none is taken."""

    id: str
    input_ids: np.ndarray
    supervised: np.ndarray
    predicted: np.ndarray  # bool: a loss is taken
    before: np.ndarray
    after: np.ndarray
    text: str = ""
    scores: dict[str, np.ndarray] = field(default_factory=dict)  # of every importance column asked for


@dataclass
class RunLosses:
    """What a run has kept."""

    path: Path
    content: dict[str, Any]  # run.json
    facts: dict[str, Any]  # of the file: eval_hash, columns, eta, ties
    steps: int  # after which `after` was taken
    documents: list[Document]

    @property
    def name(self) -> str:
        """How it is called."""
        return self.path.resolve().name


def read_run(path: Path) -> RunLosses:
    """Return a finished run's losses, in the held-out order; texts and scores are not read yet.

    Raises:
        UserError: no finished run, or one that has kept no losses.
    """
    if not (path / RUN_NAME).is_file():
        raise UserError(f"{path}: expected the directory of a finished `train run`, found no {RUN_NAME} in it.")
    table, facts = read_losses(path / LOSSES_NAME)
    rows = table.to_pylist()
    before = {row["document_id"]: row for row in rows if row["step"] == 0}
    after = [row for row in rows if row["step"] > 0]
    if not after or len(before) != len(after):
        raise UserError(
            f"{path / LOSSES_NAME}: expected losses before the first step and after the last, found "
            f"{len(before)} and {len(after)} documents: the run did not end. Go on by --resume_from_checkpoint true."
        )
    documents = []
    for row in after:
        first, last = (np.array(one["loss"], dtype=np.float64) for one in (before[row["document_id"]], row))
        predicted = np.array([value is not None for value in row["loss"]], dtype=bool)
        ids, supervised = np.array(row["input_ids"]), np.array(row["supervised"], dtype=bool)
        documents.append(Document(row["document_id"], ids, supervised, predicted, first, last))
    return RunLosses(path, read_json(path / RUN_NAME), facts, after[0]["step"], documents)


def open_run_shards(run: RunLosses, elsewhere: Sequence[str] | None) -> list[ShardDirectory]:
    """Return the shards that a run was made from, verified.

    Args:
        run: the run.
        elsewhere: where they are now, in the run's order; None: where they were.

    Raises:
        UserError: one is gone, damaged, or another than it was.
    """
    named = run.content["shards"]
    if elsewhere is not None and len(elsewhere) != len(named):
        raise UserError(f"--shards: expected {len(named)} directories as {run.path} had, found {len(elsewhere)}.")
    opened, problems = [], []
    for place, known in zip(elsewhere or [one["path"] for one in named], named, strict=True):
        try:
            directory = ShardDirectory(place)
        except UserError as error:
            problems.append(f"{error} ({run.path / RUN_NAME} names these shards; --shards says where they are now.)")
            continue
        if directory.digest != known["manifest_sha256"]:
            problems.append(
                f"{place}: its manifest is {directory.digest[:12]}…, and {run.path / RUN_NAME} names "
                f"{known['manifest_sha256'][:12]}…: the shards have changed since the run, so their scores may be "
                "others. Give the run's own by --shards."
            )
        opened.append(directory)
    raise_together(problems)
    return opened


def importance_columns(run: RunLosses, shards: Sequence[ShardDirectory], wanted: Sequence[str]) -> list[str]:
    """Return the score columns to show: `wanted`, or the run's own, or every yardstick.

    Raises:
        UserError: one of them is no importance column of every directory.
    """
    for name in wanted:
        for directory in shards:
            if directory.columns[directory.resolve_column(name)] != "importance":
                raise UserError(f"--grouper {name}: holds reference losses; expected an importance column.")
    own, yardsticks = run.content["data"]["column"], run.facts["columns"]
    return list(dict.fromkeys(wanted)) or ([own] if own in yardsticks else list(yardsticks))


def add_texts(documents: Sequence[Document], shards: Sequence[ShardDirectory], columns: Sequence[str]) -> None:
    """Read the documents' texts and scores from their shards; a document that was cut keeps the scores of what is left.

    Raises:
        UserError: a document is not in them.
    """
    missing = {document.id: document for document in documents}
    for directory in shards:
        for table in directory.tables(["document_id", "text", "input_ids", *columns]):
            chosen = pc.is_in(table["document_id"], value_set=pa.array(list(missing), pa.string()))
            for row in table.filter(chosen).to_pylist():
                document = missing.get(row["document_id"])
                num = len(document.input_ids) if document else 0
                if document is None or row["input_ids"][:num] != document.input_ids.tolist():
                    continue
                document.text = row["text"]
                document.scores = {name: np.array(row[name][:num], dtype=np.float64) for name in columns}
                del missing[document.id]
    if missing:
        raise UserError(f"document {next(iter(missing))}: is in none of {', '.join(str(s.path) for s in shards)}.")


def pair(run: RunLosses, other: RunLosses) -> list[tuple[Document, Document]]:
    """Return the documents that both runs have kept, token by token the same.

    Raises:
        UserError: there is none.
    """
    theirs = {document.id: document for document in other.documents}
    pairs = [
        (document, found)
        for document in run.documents
        if (found := theirs.get(document.id)) and np.array_equal(found.input_ids, document.input_ids)
        if np.array_equal(found.predicted, document.predicted)
    ]
    if not pairs:
        raise UserError(
            f"{run.path} and {other.path}: have kept no document in common. Give runs the same shards, "
            "--eval_fraction, --eval_seed and --max_length."
        )
    return pairs
