import json

import pytest

from annotate.records.sources import DATA_HOME, find_source
from annotate.run.engines.local import LocalEngine
from annotate.run.planning import content_hash
from common.errors import UserError


def write(path, records):
    path.write_text("\n".join(json.dumps(record) for record in records))
    return path


def test_the_sample_is_there():
    source = find_source("sample")
    assert len(source.first_values(10_000)) >= 200
    assert len(source.first_values(7)) == 7


def test_the_data_home_comes_before_the_hub(tmp_path, monkeypatch):
    write(tmp_path / "alpaca.jsonl", [{"instruction": "a", "output": "b"}])
    monkeypatch.setenv(DATA_HOME, str(tmp_path))
    source = find_source("alpaca")
    assert str(tmp_path) in source.note
    assert [value["output"] for value in source.first_values(9)] == ["b"]


def test_the_hub_is_asked_otherwise_and_its_failure_says_what_to_do(tmp_path, monkeypatch):
    import datasets

    asked = {}

    def load_dataset(path, **arguments):
        asked.update(path=path, **arguments)
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setenv(DATA_HOME, str(tmp_path))  # holds no alpaca file
    with pytest.raises(UserError, match=r"(?s)yahma/alpaca-cleaned.*no route.*hf auth login.*local file") as caught:
        find_source("alpaca")
    assert DATA_HOME in str(caught.value)
    assert asked["path"] == "yahma/alpaca-cleaned"
    assert asked["split"] == "train"


def test_a_hub_dataset_is_read_by_rows_and_hashed(monkeypatch):
    import datasets

    records = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]
    hashes = []
    for number, order in enumerate((records, records, records[::-1])):
        rows = datasets.Dataset.from_list(order)
        monkeypatch.setattr(datasets, "load_dataset", lambda path, rows=rows, **arguments: rows)
        source = find_source(f"someone/something{number}", revision="v1")
        assert [value["prompt"] for value in source.first_values(9)] == [record["prompt"] for record in order]
        assert source.revision == "v1"
        hashes.append(content_hash(source, LocalEngine()))
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_directory_of_parquet_files_is_read_in_name_order(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name, text in (("b", "second"), ("a", "first")):
        pq.write_table(pa.table({"text": [text]}), tmp_path / f"{name}.parquet")
    assert [value["text"] for value in find_source(str(tmp_path)).first_values(9)] == ["first", "second"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("nowhere.json", "no such file"),
        ("./some/where", "no such file"),
        ("{tmp}/empty.jsonl", "empty file"),
        ("{tmp}/notes.txt", "expected a file in .json"),
        ("{tmp}/folder", "directory of files in .json"),
    ],
)
def test_what_is_not_there(tmp_path, data, message):
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=message):
        find_source(data.format(tmp=tmp_path))


def test_the_data_home_must_be_a_directory(tmp_path, monkeypatch):
    monkeypatch.setenv(DATA_HOME, str(tmp_path / "gone"))
    with pytest.raises(UserError, match="expected a directory"):
        find_source("lima")


def test_a_long_record_has_the_hash_that_it_would_have_as_a_short_one(monkeypatch):
    from annotate.records import sources

    record = {"b": "é\ud800\n" * 50, "a": {"x": [1.5, None]}, "n": 3}
    short = sources.record_hash(record)
    monkeypatch.setattr(sources, "LONG_TEXT", 10)
    assert sources.record_hash(record) == short
