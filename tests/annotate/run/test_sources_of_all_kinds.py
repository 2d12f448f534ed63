"""Whole runs over each kind of source: the same shards as the plain file; what was left out is counted and said."""

import gzip
import io
import json
import sys

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from annotate.run.dry_run import describe_run
from annotate.run.pipeline import run
from annotate.run.settings import Settings
from annotate.run.summaries import print_summary, warn_of_rejects
from common.errors import UserError


def annotate(out, tokenizer, data, **options):
    settings = Settings(
        data=data,
        groupers=("tfidf",),
        out=out,
        tokenizer=str(tokenizer),
        engine="local",
        **{"rows_per_shard": 40, **options},
    )
    return run(settings, Console(quiet=True))


def parts(out):
    return [path.read_bytes() for path in sorted(out.glob("part-*.parquet"))]


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture
def plain(tmp_path, sample_records):
    kept = sample_records.read_bytes().splitlines(keepends=True)[:100]
    (tmp_path / "a.jsonl").write_bytes(b"".join(kept))
    return tmp_path / "a.jsonl"


def test_gz_standard_input_and_halves_give_the_shards_of_the_file(tmp_path, plain, sample_tokenizer, monkeypatch):
    annotate(tmp_path / "file", sample_tokenizer, str(plain))
    content = plain.read_bytes()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(content))
    annotate(tmp_path / "gz", sample_tokenizer, (str(tmp_path / "a.jsonl.gz"),))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    annotate(tmp_path / "stdin", sample_tokenizer, ("-",))
    rows = content.splitlines(keepends=True)
    (tmp_path / "1.jsonl").write_bytes(b"".join(rows[:33]))
    (tmp_path / "2.jsonl").write_bytes(b"".join(rows[33:]))
    annotate(tmp_path / "two", sample_tokenizer, (str(tmp_path / "1.jsonl"), str(tmp_path / "2.jsonl")))
    expected = parts(tmp_path / "file")
    assert len(expected) == 3
    for name in ("gz", "stdin", "two"):
        assert parts(tmp_path / name) == expected, name
        assert not (tmp_path / name / ".work").exists()


def test_columns_by_name_and_texts(tmp_path, sample_tokenizer):
    data = write(
        tmp_path / "qa.jsonl", [{"question": f"q{i}", "answer": f"a{i}", "text": "not this"} for i in range(5)]
    )
    columns = {"prompt": "question", "completion": "answer"}
    summary = annotate(tmp_path / "qa", sample_tokenizer, data, columns=columns)
    assert summary.manifest.source.format == "prompt_completion"
    assert pq.read_table(tmp_path / "qa" / "part-00000.parquet")["text"][0].as_py() == "User: q0\nAssistant: a0"
    assert annotate(tmp_path / "qa", sample_tokenizer, data, columns=columns).already_complete
    with pytest.raises(UserError, match="--map was"):
        annotate(tmp_path / "qa", sample_tokenizer, data, columns={"text": "answer"})


def test_long_documents_are_split(tmp_path, sample_tokenizer):
    text = " ".join(f"This is the sentence number {number} of a long text." for number in range(200))
    data = write(tmp_path / "long.jsonl", [{"text": text}, {"text": "Short."}, {"text": ""}])
    summary = annotate(tmp_path / "out", sample_tokenizer, data, max_length=128, overlong="split")
    table = pq.read_table(tmp_path / "out" / "part-00000.parquet").to_pylist()
    assert "".join(row["text"] for row in table if row["source_row"] == 0) == text
    assert all(len(row["input_ids"]) <= 128 for row in table)
    assert len({row["document_id"] for row in table}) == len(table)
    assert summary.manifest.counts.truncated == 0
    assert summary.manifest.counts.rejects == {"empty_response": 1}
    assert "empty" in (tmp_path / "out" / "rejects.jsonl").read_text()
    assert annotate(tmp_path / "out", sample_tokenizer, data, max_length=128, overlong="split").already_complete


def test_dropped_turns_and_many_rejects_are_said(tmp_path, sample_tokenizer, capsys):
    good = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
    open_end = {"conversations": [*good["conversations"], {"from": "human", "value": "q"}]}
    bad = {"conversations": [{"from": "human", "value": "q"}, {"from": "wizard", "value": "a"}]}
    data = write(tmp_path / "s.jsonl", [good] * 10 + [open_end] * 4 + [bad] * 3)
    summary = annotate(tmp_path / "out", sample_tokenizer, data)
    print_summary(summary)
    said = capsys.readouterr().out
    assert "4 turns at the end" in said
    assert "Warning: 3 of 17 records became no document (18%)" in said
    assert "3 unknown_role, such as row 14: message 1 of `conversations` has the unknown role 'wizard'" in said
    few = annotate(tmp_path / "few", sample_tokenizer, write(tmp_path / "f.jsonl", [good] * 20 + [bad]))
    assert warn_of_rejects(few) == []


def test_after_a_total_rejection_the_directory_can_be_used(tmp_path, sample_tokenizer):
    data = write(tmp_path / "r.jsonl", [{"instruction": "q", "output": ""}] * 3)
    with pytest.raises(UserError, match="all 3 records were rejected"):
        annotate(tmp_path / "out", sample_tokenizer, data)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["rejects.jsonl"]
    good = write(tmp_path / "g.jsonl", [{"prompt": "q", "completion": "a"}] * 3)
    assert annotate(tmp_path / "out", sample_tokenizer, good).manifest.counts.documents == 3


def test_a_dry_run_makes_nothing(tmp_path, plain, sample_tokenizer):
    settings = Settings(data=str(plain), groupers=("tfidf",), out=tmp_path / "out", tokenizer=str(sample_tokenizer))
    said = "\n".join(describe_run(settings))
    assert "format" in said
    assert "tfidf" in said
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="reference-model"):
        describe_run(Settings(data=str(plain), groupers=("rho1",), out="x", tokenizer=str(sample_tokenizer)))
