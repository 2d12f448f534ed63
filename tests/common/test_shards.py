import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import UserError
from common.manifest import (
    COPY_NAME,
    MANIFEST_NAME,
    Counts,
    GrouperInfo,
    Manifest,
    SourceInfo,
    TokenizerInfo,
    load_manifest,
)
from common.shards import ShardDirectory, column_kinds, shard_name, shard_schema, write_shard

KINDS = {"tfidf": "importance", "rho1": "reference_loss"}


def table(rows: int, start: int = 0) -> pa.Table:
    random = np.random.default_rng(start)
    columns = {
        "document_id": [f"d{start + i}" for i in range(rows)],
        "source_row": [start + i for i in range(rows)],
        "text": ["ab" for _ in range(rows)],
        "input_ids": [[1, 2, 3 + i] for i in range(rows)],
        "supervised": [[False, True, True] for _ in range(rows)],
        "tfidf": [random.random(3, dtype=np.float32) for _ in range(rows)],
        "rho1": [random.random(3, dtype=np.float32) for _ in range(rows)],
    }
    return pa.table(columns, schema=shard_schema(KINDS))


@pytest.fixture
def directory(tmp_path):
    infos = [write_shard(tmp_path / shard_name(i), table(4, 4 * i), supervised_tokens=8) for i in range(2)]
    Manifest(
        source=SourceInfo("x", "x", None, "0", "text", None),
        template="plain",
        tokenizer=TokenizerInfo("t", None, "f"),
        max_length=8,
        rows_per_shard=4,
        groupers=[GrouperInfo(name, {}, {name: kind}) for name, kind in KINDS.items()],
        counts=Counts(8, 24, 16, 0, {}),
        shards=infos,
    ).save(tmp_path)
    return tmp_path


def test_a_shard_comes_back_as_it_was_with_its_kinds(tmp_path):
    info = write_shard(tmp_path / "part-00000.parquet", table(3), supervised_tokens=6)
    back = pq.read_table(tmp_path / "part-00000.parquet")
    assert back.equals(table(3))
    assert back.schema.equals(shard_schema(KINDS), check_metadata=True)
    assert column_kinds(back.schema) == KINDS
    assert (info.rows, info.tokens, info.supervised_tokens) == (3, 9, 6)


def test_equal_tables_give_equal_bytes(tmp_path):
    first = write_shard(tmp_path / "part-00000.parquet", table(3), 6)
    second = write_shard(tmp_path / "part-00001.parquet", pa.concat_tables([table(3)]).combine_chunks(), 6)
    assert first.sha256 == second.sha256
    assert not list(tmp_path.glob(".*"))


def test_reading_keeps_order_and_limit(directory):
    shards = ShardDirectory(directory)
    assert shards.columns == KINDS
    rows = [row for part in shards.tables(["source_row"]) for row in part["source_row"].to_pylist()]
    assert rows == list(range(8))
    assert sum(part.num_rows for part in shards.tables(["source_row"], limit=5)) == 5


def test_the_manifest_comes_back_as_it_was(directory):
    manifest = load_manifest(directory)
    manifest.save(directory)
    assert load_manifest(directory) == manifest


def test_a_truncated_shard_is_named(directory):
    path = directory / shard_name(1)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"part-00001.parquet: expected \d+ bytes, found \d+"):
        ShardDirectory(directory)


def test_a_flipped_bit_is_named(directory):
    path = directory / shard_name(0)
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"part-00000.parquet: expected SHA-256"):
        ShardDirectory(directory)


def test_every_damaged_shard_is_named_at_once(directory):
    for index in range(2):
        (directory / shard_name(index)).unlink()
    with pytest.raises(UserError, match=r"(?s)part-00000.*part-00001.*annotate run"):
        ShardDirectory(directory)


def test_directories_that_are_no_shard_directories(directory, tmp_path):
    with pytest.raises(UserError, match="no such directory"):
        ShardDirectory(tmp_path / "nowhere")
    (directory / MANIFEST_NAME).unlink()
    (directory / COPY_NAME).unlink()
    with pytest.raises(UserError, match="found no manifest"):
        ShardDirectory(directory)
    (directory / ".work").mkdir()
    with pytest.raises(UserError, match="did not finish"):
        ShardDirectory(directory)


def test_columns_are_resolved_by_name(directory):
    shards = ShardDirectory(directory)
    assert shards.resolve_column("rho1") == "rho1"
    with pytest.raises(UserError, match="name one with --grouper"):
        shards.resolve_column(None)
    with pytest.raises(UserError, match=r"not 'llmlingua2'"):
        shards.resolve_column("llmlingua2")
