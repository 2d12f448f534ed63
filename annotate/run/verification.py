"""`annotate verify`: does a shard directory hold exactly what its manifest says?

What enters: a shard directory. What leaves: its manifest, or one error that names every shard that is wrong and how.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from common.manifest import Manifest, ShardInfo
from common.shards import ShardDirectory, check_shard, refuse_damage, shard_schema


def verify_shards(directory: Path) -> Manifest:
    """Check every shard's size, checksum, schema, row lengths, counts and scores, and the manifest's totals.

    Raises:
        UserError: what is wrong, shard by shard.
    """
    manifest = ShardDirectory(directory, verify=False).manifest
    schema = shard_schema(manifest.columns)
    problems = []
    for shard in manifest.shards:
        problem = check_shard(directory, shard) or _check_content(directory, shard, schema)
        if problem:
            problems.append(problem)
    known = {shard.file for shard in manifest.shards}
    problems += [
        f"{path}: a shard that the manifest does not know; remove it."
        for path in sorted(directory.glob("part-*.parquet"))
        if path.name not in known
    ]
    for name in ("documents", "tokens", "supervised_tokens"):
        field = "rows" if name == "documents" else name
        total = sum(getattr(shard, field) for shard in manifest.shards)
        if total != getattr(manifest.counts, name):
            problems.append(f"manifest.json: {name} is {getattr(manifest.counts, name)}, the shards hold {total}.")
    refuse_damage(directory, problems)
    return manifest


def _check_content(directory: Path, shard: ShardInfo, schema: pa.Schema) -> str | None:
    """Return what is wrong inside a shard whose bytes are as expected."""
    path = directory / shard.file
    found = pq.read_schema(path)
    if not found.equals(schema, check_metadata=True):
        return f"{path}: expected the columns\n{schema}\nfound\n{found}"
    table = pq.read_table(path)
    lengths = table["input_ids"].combine_chunks().value_lengths().to_numpy()
    for name in table.column_names[4:]:
        column = table[name].combine_chunks()
        if not np.array_equal(column.value_lengths().to_numpy(), lengths):
            return f"{path}: column {name} has rows of other lengths than input_ids."
        if pa.types.is_floating(column.type.value_type) and not np.isfinite(column.flatten().to_numpy()).all():
            return f"{path}: column {name} holds a score that is not finite."
    supervised = int(np.count_nonzero(table["supervised"].combine_chunks().flatten().to_numpy(zero_copy_only=False)))
    expected = (shard.rows, shard.tokens, shard.supervised_tokens)
    found_counts = (table.num_rows, int(lengths.sum()), supervised)
    if found_counts != expected:
        return f"{path}: expected {expected} rows, tokens and supervised tokens; found {found_counts}."
    return None
