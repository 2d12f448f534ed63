import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from annotate.records import readers
from annotate.records.ranges import Mark, file_ranges, read_range
from annotate.records.readers import Row
from common.errors import UserError
from common.storage import locate


def read(path, start: int = 0) -> list[Row]:
    """Return the rows of a file, from a byte on."""
    (part,) = file_ranges(locate(path), path.stat().st_size, 0)
    return list(read_range(part, Mark(byte=start)))


def pairs(path) -> list:
    return [(row.value, row.unreadable) for row in read(path)]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(VALUES, max_size=6), st.integers(1, 40), st.sampled_from([None, 1]))
def test_arrays_are_read_as_json_load_reads_them_wherever_the_reads_end(tmp_path, monkeypatch, values, size, indent):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(values, ensure_ascii=False, indent=indent), encoding="utf-8")
    monkeypatch.setattr(readers, "READ_BYTES", size)
    rows = read(path)
    assert [row.value for row in rows] == values
    for number in range(1, len(rows)):  # and from the middle, the rest
        assert read(path, rows[number].byte) == rows[number:]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"a": 1}, {"a":', "a record cannot be read"),
        ('[{"a": 1}', "without ]"),
        ('[{"a": 1} {"a": 2}]', "comma is missing"),
        ('[{"a": 1},, {"a": 2}]', "a record cannot be read"),
        ("hello", "expected a JSON array"),
    ],
)
def test_broken_arrays_say_what_is_wrong(tmp_path, content, message):
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read(path)


def test_an_unreadable_line_is_kept_in_its_place(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": \n\n\xff\xfe\n{"text": "b"}\n' + b"[" * 100_000 + b"\n")
    rows = pairs(path)
    assert [value for value, _ in rows] == [{"text": "a"}, None, None, {"text": "b"}, None]
    assert rows[1][1].startswith("line 2 is not JSON")
    assert rows[2][1].startswith("line 4 is not JSON")
    assert rows[4][1].startswith("line 6")


def test_json_lines_under_the_name_json(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('\ufeff{"text": "a"}\n{"text": "b"}\n', encoding="utf-8")
    assert [row.value["text"] for row in read(path)] == ["a", "b"]


def test_csv_cells_and_broken_rows(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('instruction,output\n"a, b","c\nd"\nx,y,z\ne,f\n', encoding="utf-8")
    rows = pairs(path)
    assert rows[0][0] == {"instruction": "a, b", "output": "c\nd"}
    assert rows[1][0] is None
    assert "more cells" in rows[1][1]
    assert rows[2][0] == {"instruction": "e", "output": "f"}


def test_parquet_rows_and_a_file_that_is_none(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    records = [{"messages": [{"role": "user", "content": str(i)}]} for i in range(2500)]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "x.parquet")
    assert [row.value for row in read(tmp_path / "x.parquet")] == records
    (tmp_path / "y.parquet").write_text("no")
    with pytest.raises(UserError, match="expected a Parquet file"):
        read(tmp_path / "y.parquet")
