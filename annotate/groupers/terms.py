"""Corpus statistics over token ids, shared by the groupers that count terms.

A term is a token id. What enters: a `TokenBatch` or counts summed over the corpus. What leaves: counts per term, and
the small Parquet file of a fitted state, in `<out>/state/`.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from annotate.tokens.batch import TokenBatch
from common.errors import UserError
from common.files import atomic_path


class DocumentTerms(NamedTuple):
    """The distinct (document, term) pairs of a batch, and which of them each token is."""

    terms: np.ndarray  # int64 [num_pairs]: token id, ascending
    documents: np.ndarray  # int64 [num_pairs]: document index, ascending for each term
    counts: np.ndarray  # int64 [num_pairs]: raw count of the term in the document
    inverse: np.ndarray  # int64 [num_tokens]: the pair that each token belongs to


def _sort_by_term(batch: TokenBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the tokens' order by term and document, their terms and documents in it, and where a new pair begins.

    Tokens already stand in document order, so one stable sort by term sorts the pairs. The terms are numbered through
    first: a shard rarely holds more than 2^16 different ones, and numpy sorts 16-bit integers by radix, in linear time.
    """
    present = np.bincount(batch.input_ids) > 0
    number = np.cumsum(present) - 1
    small = np.uint16 if present.sum() <= 1 << 16 else np.int64
    order = np.argsort(number.astype(small)[batch.input_ids], kind="stable")
    terms, documents = batch.input_ids[order], batch.document_index[order]
    first = np.ones(batch.num_tokens, dtype=bool)
    first[1:] = (terms[1:] != terms[:-1]) | (documents[1:] != documents[:-1])
    return order, terms, documents, first


def document_terms(batch: TokenBatch) -> DocumentTerms:
    """Find the distinct (document, term) pairs of a batch."""
    order, terms, documents, first = _sort_by_term(batch)
    starts = np.flatnonzero(first)
    inverse = np.empty(batch.num_tokens, dtype=np.int64)
    inverse[order] = np.cumsum(first) - 1
    counts = np.diff(starts, append=batch.num_tokens)
    return DocumentTerms(terms[starts].astype(np.int64), documents[starts], counts, inverse)


def document_frequency(batch: TokenBatch) -> np.ndarray:
    """Return the number of documents that hold each term, int64 [num_terms], by token id."""
    _, terms, _, first = _sort_by_term(batch)
    return np.bincount(terms[first])


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
