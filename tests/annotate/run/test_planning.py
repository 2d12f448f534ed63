"""The plan: every shard's rows are those of the source, whatever the ranges, and repeated records are numbered."""

import json
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from annotate.records import ranges
from annotate.records.ranges import read_range
from annotate.records.sources import document_id, find_source, record_hash
from annotate.run import planning, repeats, scanning
from annotate.run.engines.local import LocalEngine
from annotate.run.planning import SourcePlan, content_hash, default_rows, plan_source
from annotate.run.repeats import SourceNotes, repeated
from common.errors import UserError
from common.storage import locate


def rows_of(plan: SourcePlan, work, shard: int) -> list:
    """Return (row, id, value, unreadable) of a shard's records, read as a worker reads them."""
    notes, found = SourceNotes(work, plan.repeat_parts), []
    for piece in plan.pieces(shard):
        mark, skip = notes.place_of(piece.part, piece.start)
        first = piece.part.first_row + piece.start
        earlier = notes.repeats(piece.part.number, first, first + piece.stop - piece.start)
        for row, record in enumerate(
            islice(read_range(piece.part, mark), skip, skip + piece.stop - piece.start), first
        ):
            name = document_id(record_hash(record.value), earlier.get(row, 0))
            found.append((row, name, record.value, record.unreadable))
    return found


def expected(values: list) -> list:
    """Return the same for all records, in the plainest way."""
    seen: Counter[str] = Counter()
    found = []
    for row, (value, unreadable) in enumerate(values):
        content = record_hash(value)
        found.append((row, document_id(content, seen[content]), value, unreadable))
        seen[content] += 1
    return found


RECORDS = st.lists(
    st.fixed_dictionaries({"text": st.sampled_from(["a", "b", "a\nb", "é" * 30, "x" * 200])})
    | st.sampled_from(["", "{broken", "\t"]),
    min_size=1,
    max_size=30,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(RECORDS, st.integers(1, 400), st.integers(1, 9), st.integers(1, 5), st.none() | st.integers(1, 20))
def test_shards_of_json_lines_are_the_source_wherever_its_ranges_end(
    tmp_path, monkeypatch, records, range_bytes, rows_per_shard, mark_rows, limit
):
    monkeypatch.setattr(ranges, "RANGE_BYTES", range_bytes)
    monkeypatch.setattr(scanning, "MARK_ROWS", mark_rows)
    monkeypatch.setattr(planning, "HASHES_AT_ONCE", 4)
    monkeypatch.setattr(repeats, "BLOCK_RANGES", 2)
    path = tmp_path / "x.jsonl"
    lines = [record if isinstance(record, str) else json.dumps(record, ensure_ascii=False) for record in records]
    path.write_text("\r\n".join(lines), encoding="utf-8")
    values = []
    for number, line in enumerate(lines, start=1):
        if line == "{broken":
            values.append((None, number))
        elif line.strip():
            values.append((json.loads(line), None))
    source, work = None, locate(tmp_path / "work")
    if not values:
        return
    work.delete_tree()
    source = find_source(str(path))
    plan = plan_source(source, LocalEngine(), work, limit, rows_per_shard)
    assert plan.rows == len(values[:limit])
    found = [row for shard in range(plan.num_shards) for row in rows_of(plan, work, shard)]
    wanted = expected(values[:limit])
    assert [row[:3] for row in found] == [row[:3] for row in wanted]
    for (*_, message), (*_, number) in zip(found, wanted, strict=True):
        assert (message is None) == (number is None)
        assert number is None or message.startswith(f"line {number} is not JSON")
    plan.save(work / "plan.json")
    assert SourcePlan.load(work / "plan.json") == plan


@pytest.mark.parametrize("copy_bytes", [0, 1 << 30])
def test_shards_of_parquet_files_with_large_row_groups(tmp_path, monkeypatch, copy_bytes):
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setattr(scanning, "COPY_BYTES", copy_bytes)
    monkeypatch.setattr(ranges, "RANGE_BYTES", 20_000)
    records = [{"text": f"{i % 1700} {'x' * (i % 50)}", "n": i % 1700} for i in range(5000)]
    for number in range(2):
        table = pa.Table.from_pylist(records[number * 2500 : (number + 1) * 2500])
        pq.write_table(table, tmp_path / f"{number}.parquet", row_group_size=700)
    work = locate(tmp_path / "work")
    plan = plan_source(find_source(str(tmp_path)), LocalEngine(), work, None, 333)
    assert len(plan.ranges) > 4
    assert all((part.copy is not None) == (copy_bytes == 0) for part in plan.ranges)
    found = [row for shard in range(plan.num_shards) for row in rows_of(plan, work, shard)]
    assert found == expected([(record, None) for record in records])


@given(st.lists(st.integers(0, 5), max_size=40))
def test_repeats_are_those_of_a_counter(keys):
    hashes = np.zeros((len(keys), 10), dtype=np.uint8)
    hashes[:, 9] = keys  # the last bytes count as well
    seen, wanted = Counter(), []
    for row, key in enumerate(keys):
        if seen[key]:
            wanted.append((row, seen[key]))
        seen[key] += 1
    rows, occurrences = repeated(hashes, np.arange(len(keys)))
    assert list(zip(rows.tolist(), occurrences.tolist(), strict=True)) == wanted


def test_rows_of_a_shard_by_default():
    assert default_rows(1_000, 500_000) == 1000
    assert default_rows(17_387, 7_800_000) == 1000, "small: a thousand records, as ever"
    assert default_rows(1_000_000, 500_000_000) == 15_625, "64 shards"
    assert default_rows(10**9, 500 * 10**9) == 33_554, "64 MB of columns: 16 MiB of records of 500 bytes"
    assert default_rows(10, 1 << 40) == 1, "a record above it is a shard"


def test_a_large_file_is_hashed_in_pieces_and_a_small_one_as_a_whole(tmp_path, monkeypatch):
    import hashlib

    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text": "a"}\n' * 50)
    whole = hashlib.sha256(hashlib.sha256(path.read_bytes()).digest()).hexdigest()
    assert content_hash(find_source(str(path)), LocalEngine()) == whole
    monkeypatch.setattr(planning, "PIECE_BYTES", 100)
    pieces = [path.read_bytes()[at : at + 100] for at in range(0, 700, 100)]
    tree = hashlib.sha256(b"".join(hashlib.sha256(piece).digest() for piece in pieces)).digest()
    assert content_hash(find_source(str(path)), LocalEngine()) == hashlib.sha256(tree).hexdigest()


def test_a_source_without_records_is_refused(tmp_path):
    (tmp_path / "x.jsonl").write_text("\n\n")
    with pytest.raises(UserError, match="expected records, found none"):
        plan_source(find_source(str(tmp_path / "x.jsonl")), LocalEngine(), locate(tmp_path / "work"), None, 5)


def test_the_plan_of_a_billion_rows_is_small():
    """10,000 files of 100,000 records: what the driver keeps, and how it finds a shard's rows."""
    import tracemalloc

    tracemalloc.start()
    parts = tuple(
        ranges.SourceRange(i, "lines", locate("/data/x.jsonl"), 0, 50 << 20, rows=100_000, first_row=i * 100_000)
        for i in range(10_000)
    )
    plan = SourcePlan(parts, 10**9, 500 * 10**9, 239, default_rows(10**9, 500 * 10**9))
    assert plan.num_shards == 29_803
    pieces = plan.pieces(plan.num_shards - 1)
    assert pieces[-1].stop == 100_000
    assert pieces[-1].part.number == 9_999
    assert sum(piece.stop - piece.start for piece in plan.pieces(12_345)) == plan.rows_per_shard
    assert tracemalloc.get_traced_memory()[1] < 20 << 20
    tracemalloc.stop()
