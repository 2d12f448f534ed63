"""What `--data` can name: several, patterns, compressed files, standard input, weights, splits of the hub."""

import gzip
import io
import json
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from annotate.records.ranges import HubData, begin_of, is_taken, read_range
from annotate.records.selection import Selection, parse_hub, parse_selection
from annotate.records.sources import find_sources
from common.errors import UserError
from common.storage import locate


def record(number: int) -> dict:
    return {"instruction": f"q{number}", "output": f"a{number}"}


def lines(numbers: range) -> bytes:
    return "".join(json.dumps(record(number)) + "\n" for number in numbers).encode()


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def values(*data: str) -> list[dict]:
    """Read everything, as workers do: range by range."""
    source = find_sources(data, None, locate(Path("unpacked").absolute()))
    found = []
    for number in range(len(source.files) or 1):
        for part in source.ranges_of(number):
            mark = begin_of(part)
            found += [row.value for row in read_range(part, mark)] if mark else []
    return found


def test_several_are_read_one_after_another(place):
    (place / "b.jsonl").write_bytes(lines(range(3)))
    (place / "a.json").write_text(json.dumps([record(9)]))
    assert values("b.jsonl", "a.json") == [*map(record, range(3)), record(9)]


def test_patterns_and_directories(place):
    (place / "parts").mkdir()
    for number in (2, 0, 1):
        (place / "parts" / f"{number}.jsonl").write_bytes(lines(range(number, number + 1)))
    (place / "parts" / "notes.txt").write_text("no records")
    assert values("parts/*.jsonl") == list(map(record, range(3)))
    assert values("parts") == list(map(record, range(3)))
    with pytest.raises(UserError, match="no file matches"):
        values("parts/*.csv")


def test_compressed_files_are_what_they_hold(place):
    (place / "a.jsonl.gz").write_bytes(gzip.compress(lines(range(2))) + gzip.compress(lines(range(2, 4))))
    (place / "b.json.zst").write_bytes(pa.compress(json.dumps([record(7)]).encode(), codec="zstd", asbytes=True))
    assert values("a.jsonl.gz", "b.json.zst") == [*map(record, range(4)), record(7)]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "b.jsonl.zst"])
def test_damaged_compressed_files_are_named(place, name):
    whole = gzip.compress(lines(range(999))) if name.endswith("gz") else b"no zstd at all"
    (place / name).write_bytes(whole[:-9])
    with pytest.raises(UserError, match=f"{name}.*damaged"):
        values(name)


@pytest.mark.parametrize(
    "content",
    [lines(range(2)), json.dumps([record(0), record(1)]).encode(), b"instruction,output\nq0,a0\nq1,a1\n"],
    ids=["lines", "array", "csv"],
)
def test_standard_input_is_recognized(place, monkeypatch, content):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert values("-") == [record(0), record(1)]


def test_tabs(place):
    (place / "a.tsv").write_text('instruction\toutput\nq0\ta0\nq1\t"a, with a\ttab"\n')
    assert values("a.tsv") == [record(0), {"instruction": "q1", "output": "a, with a\ttab"}]


def test_weights_take_the_same_share_each_time_and_repeat(place):
    (place / "a.jsonl").write_bytes(lines(range(1000)))
    everything = list(map(record, range(1000)))
    some = values("a.jsonl@0.3")
    assert 250 < len(some) < 350
    assert some == [value for value in everything if is_taken(value, 0.3)]
    assert values("a.jsonl@2.3") == everything * 2 + some
    assert values("a.jsonl@1") == everything


def test_a_share_of_parquet_rows_is_read_from_marks_too(place):
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(list(map(record, range(300)))), place / "a.parquet", row_group_size=50)
    source = find_sources(["a.parquet@0.5"], None, locate(place / "unpacked"))
    (part,) = source.ranges_of(0)
    rows = [row.value for row in read_range(part, begin_of(part))]
    assert 100 < len(rows) < 200
    from annotate.records.ranges import Mark

    assert [row.value for row in read_range(part, Mark(row=40))] == rows[40:]


def test_what_a_name_says():
    assert parse_selection("a.json@0.25") == Selection("a.json", 0.25)
    assert parse_selection("me@home/a.json") == Selection("me@home/a.json")
    assert parse_selection("a@2.5").shares == [1.0, 1.0, 0.5]
    with pytest.raises(UserError, match="weight above 0"):
        parse_selection("a.json@0")
    assert parse_hub("owner/name") == {"path": "owner/name"}
    assert parse_hub("owner/name:en[test]") == {"path": "owner/name", "name": "en", "split": "test"}
    assert parse_hub("owner/name[train[:10%]]") is None
    assert parse_hub("a/b/c") is None


def test_a_split_is_loaded(place):
    import datasets

    datasets.Dataset.from_list([{"text": "other"}]).to_parquet(place / "test.parquet")
    data = HubData((("path", "parquet"), ("data_files", str(place / "test.parquet")), ("split", "train[:1]")), None)
    assert data.load()["text"][0] == "other"
