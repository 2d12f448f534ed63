"""Corpus statistics over token ids, shared by the groupers that count terms.

A term is a token id. What enters: a `TokenBatch` or counts summed over the corpus. What leaves: counts per term, and
the small Parquet file of a fitted state, in `<out>/state/`.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from annotate.batch import TokenBatch
from common.errors import UserError
from common.files import atomic_path


class DocumentTerms(NamedTuple):
    """The distinct terms of every document, and where each token's term stands among them."""

    terms: np.ndarray  # int64 [num_pairs]: token id, ascending inside a document
    documents: np.ndarray  # int64 [num_pairs]: document index, ascending
    counts: np.ndarray  # int64 [num_pairs]: raw count of the term in the document
    inverse: np.ndarray  # int64 [num_tokens]: the pair that each token belongs to


def document_terms(batch: TokenBatch) -> DocumentTerms:
    """Find the distinct (document, term) pairs of a batch by one sort."""
    width = int(batch.input_ids.max(initial=0)) + 1
    keys = batch.document_index * width + batch.input_ids
    pairs, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    return DocumentTerms(pairs % width, pairs // width, counts, inverse.reshape(-1))


def save_counts(path: Path, column: str, counts: np.ndarray, total: int) -> None:
    """Write the terms that occur, with their counts; `total` goes into the file's metadata.

    Args:
        counts: int64 [num_terms], indexed by token id.
        total: documents or tokens of the corpus.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    terms = np.flatnonzero(counts)
    schema = pa.schema([("token_id", pa.int32()), (column, pa.int64())], metadata={"total": str(total)})
    table = pa.table([pa.array(terms.astype(np.int32)), pa.array(counts[terms])], schema=schema)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def load_counts(path: Path, column: str) -> tuple[np.ndarray, int]:
    """Read what `save_counts` wrote: counts by token id (as long as the largest id needs), and the total."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        terms, values = table["token_id"].to_numpy(), table[column].to_numpy()
        total = int(table.schema.metadata[b"total"])
    except (OSError, KeyError, TypeError, pa.ArrowInvalid) as error:
        raise UserError(
            f"{path}: expected the fitted counts of an annotation ({column}), found none that can be read ({error}). "
            "Annotate again into an empty directory."
        ) from error
    counts = np.zeros(int(terms.max(initial=-1)) + 1, dtype=np.int64)
    counts[terms] = values
    return counts, total


def counts_of(counts: np.ndarray, terms: np.ndarray) -> np.ndarray:
    """Return the counts of these terms; 0 for a term that the corpus does not hold."""
    if counts.size == 0:
        return np.zeros(terms.shape, dtype=np.int64)
    return np.where(terms < counts.size, counts[np.minimum(terms, counts.size - 1)], 0)
