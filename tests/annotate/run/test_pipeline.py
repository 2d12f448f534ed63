"""The whole annotation, through its front door, with the local engine; Ray has a file of its own."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from annotate.groupers.base import GrouperOptions
from annotate.run import fitting, scoring, tokenizing
from annotate.run.pipeline import run
from annotate.run.settings import Settings
from annotate.run.verification import verify_shards
from common.errors import UserError
from common.files import sha256_file
from common.shards import ShardDirectory

QUIET = Console(quiet=True)


def annotate(out: Path, *groupers: str, **settings):
    options = {"data": "sample", "engine": "local", "rows_per_shard": 50, **settings}
    return run(Settings(out=out, groupers=groupers or ("tfidf",), **options), QUIET)


def hashes(out: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in sorted(out.glob("part-*"))}


def rows(out: Path, *columns: str) -> list:
    return [
        row for path in sorted(out.glob("part-*")) for row in pq.read_table(path, columns=list(columns)).to_pylist()
    ]


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    out = tmp_path_factory.mktemp("complete") / "shards"
    annotate(out, "tfidf", "random")
    return out


@pytest.fixture
def copy(complete, tmp_path):
    shutil.copytree(complete, tmp_path / "copy")
    return tmp_path / "copy"


def test_the_sample_is_annotated_whole(complete):
    manifest = verify_shards(complete)
    assert manifest.counts.documents >= 200
    assert manifest.counts.rejects == {}
    assert manifest.columns == {"tfidf": "importance", "random": "importance"}
    assert [row["source_row"] for row in rows(complete, "source_row")] == list(range(manifest.counts.documents))
    assert len({row["document_id"] for row in rows(complete, "document_id")}) == manifest.counts.documents
    assert not (complete / ".work").exists()
    assert (complete / "rejects.jsonl").read_text() == ""


def test_rows_a_shard_change_the_files_and_not_the_rows(complete, tmp_path):
    annotate(tmp_path / "x", "tfidf", "random", rows_per_shard=1000)
    assert len(list((tmp_path / "x").glob("part-*"))) == 1
    names = ["document_id", "source_row", "text", "input_ids", "supervised", "tfidf", "random"]
    assert rows(tmp_path / "x", *names) == rows(complete, *names)


def test_a_finished_run_started_again_does_nothing(copy):
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file()}
    assert annotate(copy, "tfidf").already_complete
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file()} == before


def test_a_second_grouper_adds_its_column_and_leaves_the_others(copy, tmp_path):
    summary = annotate(copy, "frequency")
    assert list(summary.manifest.columns) == ["tfidf", "random", "frequency"]
    verify_shards(copy)
    annotate(tmp_path / "all", "tfidf", "random", "frequency")
    assert hashes(copy) == hashes(tmp_path / "all")


def test_a_damaged_shard_is_named_and_made_again(copy, complete):
    (copy / "part-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"part-00001.parquet: expected \d+ bytes, found 4"):
        verify_shards(copy)
    summary = annotate(copy, "tfidf")
    assert summary.shards_made == 1
    assert hashes(copy) == hashes(complete)
    assert verify_shards(copy).counts == ShardDirectory(complete).manifest.counts


def test_lost_state_is_made_again(copy, complete):
    (copy / "state" / "tfidf.parquet").unlink()
    annotate(copy, "tfidf")
    assert sha256_file(copy / "state" / "tfidf.parquet") == sha256_file(complete / "state" / "tfidf.parquet")
    assert hashes(copy) == hashes(complete)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_length": 100}, "--max-length was 4096, now 100"),
        ({"template": "chat"}, "--template was plain, now chat"),
        ({"limit": 3}, "--limit was None, now 3"),
        ({"rows_per_shard": 10}, "--rows-per-shard was 50, now 10"),
        ({"options": GrouperOptions(seed=5)}, "seed was 0, now 5"),
    ],
)
def test_changed_settings_are_refused_with_what_changed(copy, complete, changes, message):
    with pytest.raises(UserError, match=message):
        annotate(copy, "random", **changes)
    verify_shards(copy)
    assert hashes(copy) == hashes(complete)


class Stop(Exception):
    """Stands for a crash."""


@pytest.mark.parametrize("stage", ["write_tokens", "write_counts", "write_shard"])
@pytest.mark.parametrize("after", [0, 2])
def test_a_run_that_stops_goes_on_and_redoes_nothing_that_was_done(complete, tmp_path, monkeypatch, stage, after):
    module = {"write_tokens": tokenizing, "write_counts": fitting, "write_shard": scoring}[stage]
    original, calls = getattr(module, stage), []

    def failing(path, *arguments, **facts):
        if len(calls) == after:
            raise Stop
        calls.append(path)
        return original(path, *arguments, **facts)

    out = tmp_path / "x"
    monkeypatch.setattr(module, stage, failing)
    with pytest.raises(Stop):
        annotate(out, "tfidf", "random")
    with pytest.raises(UserError, match="did not finish"):
        ShardDirectory(out)
    again = []
    monkeypatch.setattr(module, stage, lambda path, *a, **f: (again.append(path), original(path, *a, **f))[1])
    annotate(out, "tfidf", "random")
    assert len(calls) == after
    assert not {path.name for path in calls} & {path.name for path in again}
    assert hashes(out) == hashes(complete)
    verify_shards(out)


@pytest.mark.slow
def test_a_killed_process_goes_on(complete, tmp_path):
    """SIGKILL at several moments, the same command again, equal bytes at the end."""
    out = tmp_path / "x"
    command = [
        sys.executable,
        "-m",
        "annotate.cli",
        "run",
        "--grouper",
        "tfidf",
        "--grouper",
        "random",
        "--engine",
        "local",
    ]
    command += ["--rows-per-shard", "50", "--out", str(out)]
    for wanted in ("tokens/part-00001.arrow", "part-00000.json", "part-00002.json"):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not list(out.glob(f".work/**/{Path(wanted).name}")):
            time.sleep(0.002)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    subprocess.run(command, check=True, capture_output=True)
    assert hashes(out) == hashes(complete)
    verify_shards(out)


def write(path: Path, lines: list[str]) -> str:
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_bad_records_are_rejected_one_by_one(tmp_path, sample_tokenizer):
    good = json.dumps({"instruction": "q", "output": "a"})
    bad = ['{"instruction": "q", "output": 7}', '{"instruction": ', '"text"', '{"instruction": "q", "output": ""}']
    long = json.dumps({"instruction": "word " * 500, "output": "a"})
    data = write(tmp_path / "x.jsonl", [good, *bad, long, good])
    summary = annotate(tmp_path / "out", data=data, tokenizer=str(sample_tokenizer), max_length=200, rows_per_shard=2)
    assert [row["source_row"] for row in rows(tmp_path / "out", "source_row")] == [0, 6]
    ids = [row["document_id"] for row in rows(tmp_path / "out", "document_id")]
    assert [i.split("-")[0] for i in ids] == [ids[0].split("-")[0]] * 2, "equal records share the hash"
    assert [i.split("-")[1] for i in ids] == ["0", "1"], "and differ in the occurrence"
    rejects = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert [(reject["source_row"], reject["reason"]) for reject in rejects] == [
        (1, "wrong_type"),
        (2, "unreadable"),
        (3, "not_an_object"),
        (4, "empty_response"),
        (5, "no_supervised_token"),
    ]
    assert sum(summary.manifest.counts.rejects.values()) == 5
    verify_shards(tmp_path / "out")
    # a directory with rejects and an empty shard can take a second grouper
    annotate(tmp_path / "out", "random", data=data, tokenizer=str(sample_tokenizer), max_length=200, rows_per_shard=2)
    assert len((tmp_path / "out" / "rejects.jsonl").read_text().splitlines()) == 5
    assert [row["source_row"] for row in rows(tmp_path / "out", "source_row")] == [0, 6]


def test_when_every_record_is_rejected(tmp_path, sample_tokenizer):
    data = write(tmp_path / "x.jsonl", ['{"instruction": "q", "output": ""}'] * 3)
    with pytest.raises(UserError, match=r"all 3 records were rejected \(3 empty_response\)"):
        annotate(tmp_path / "out", data=data, tokenizer=str(sample_tokenizer))
    assert len((tmp_path / "out" / "rejects.jsonl").read_text().splitlines()) == 3
    with pytest.raises(UserError, match="found no manifest"):
        ShardDirectory(tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "nowhere.json"}, "no such file"),
        ({"groupers": ("bm25",)}, "--grouper bm25: expected one of"),
        ({"groupers": ()}, "name at least one"),
        ({"format_name": "vicuna"}, "--format vicuna: expected one of"),
        ({"template": "vicuna"}, "--template vicuna: expected one of"),
        ({"rows_per_shard": 0}, "--rows-per-shard 0"),
        ({"limit": 0}, "--limit 0"),
        ({"max_length": 1}, "--max-length 1"),
        ({"engine": "spark"}, "expected ray or local"),
        ({"workers": 2}, "--workers counts Ray workers"),
        ({"address": "auto"}, "--address names a Ray cluster"),
        ({"tokenizer": "./nowhere"}, "--tokenizer ./nowhere"),
        ({"options": GrouperOptions(seed=3)}, "--seed is read by none of tfidf"),
    ],
)
def test_wrong_settings(tmp_path, changes, message):
    settings = {"data": "sample", "engine": "local", "groupers": ("tfidf",), **changes}
    with pytest.raises(UserError, match=message):
        run(Settings(out=tmp_path / "x", **settings), QUIET)


def test_all_wrong_settings_come_together(tmp_path):
    with pytest.raises(UserError, match=r"(?s)3 problems:.*bm25.*vicuna.*--limit"):
        annotate(tmp_path / "x", "bm25", format_name="vicuna", limit=-1)


def test_directories_that_cannot_be_used(tmp_path, copy):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="found a file"):
        annotate(tmp_path / "file")
    with pytest.raises(UserError, match="cannot be written"):
        annotate(tmp_path / "file" / "below")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"found 'thesis.tex' and no manifest"):
        annotate(tmp_path / "other")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["thesis.tex"]


def test_an_empty_file_and_unknown_columns(tmp_path, sample_tokenizer):
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(UserError, match="found an empty file"):
        annotate(tmp_path / "x", data=str(tmp_path / "empty.jsonl"), tokenizer=str(sample_tokenizer))
    blank = write(tmp_path / "blank.jsonl", ["", ""])
    with pytest.raises(UserError, match="expected records, found none"):
        annotate(tmp_path / "x", data=blank, tokenizer=str(sample_tokenizer))
    data = write(tmp_path / "x.jsonl", ['{"question": "q"}'])
    with pytest.raises(UserError, match="found question"):
        annotate(tmp_path / "x", data=data, tokenizer=str(sample_tokenizer))
    assert not (tmp_path / "x").exists()


def test_the_shards_are_a_dataset_for_anyone(complete):
    import datasets

    dataset = datasets.load_dataset(
        "parquet", data_files=str(complete / "part-*.parquet"), split="train", cache_dir=str(complete.parent / "cache")
    )
    assert len(dataset) == ShardDirectory(complete).manifest.counts.documents
    row = dataset[3]
    assert len(row["input_ids"]) == len(row["supervised"]) == len(row["tfidf"]) == len(row["random"])
    assert np.isfinite(row["tfidf"]).all()
