"""Every damaged byte's file is named, and what can be made again is made again."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from annotate.cli import app
from annotate.run.pipeline import run
from annotate.run.repairs import repair
from annotate.run.settings import Settings
from annotate.run.verification import examine, verify_shards
from common.errors import UserError
from common.manifest import COPY_NAME, MANIFEST_NAME
from common.storage import locate
from tests.annotate.run import flips


@pytest.fixture(scope="module")
def complete(tmp_path_factory, sample_records, sample_tokenizer):
    """Three shards, two fits, one reject."""
    folder = tmp_path_factory.mktemp("complete")
    lines = sample_records.read_text().splitlines()[:60]
    (folder / "data.jsonl").write_text("\n".join([*lines, '{"instruction": "q", "output": ""}']) + "\n")
    settings = Settings(
        data=str(folder / "data.jsonl"),
        groupers=("tfidf", "frequency", "random"),
        out=folder / "shards",
        tokenizer=str(sample_tokenizer),
        engine="local",
        rows_per_shard=25,
    )
    run(settings, Console(quiet=True))
    return folder / "shards"


@pytest.fixture
def copy(complete, tmp_path):
    shutil.copytree(complete, tmp_path / "copy")
    return tmp_path / "copy"


def content(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def flip(path: Path, random: np.random.Generator) -> None:
    data = bytearray(path.read_bytes())
    data[random.integers(len(data))] ^= 1 << random.integers(8)
    path.write_bytes(data)


def test_a_whole_directory(complete):
    found = examine(complete)
    assert found.damage == []
    assert found.notes == []
    names = {file.file for file in found.manifest.files}
    assert {"rejects.jsonl", "state/tfidf.parquet", "state/frequency.parquet", "tokenizer/tokenizer.json"} <= names
    assert repair(complete).mended == []


@pytest.mark.parametrize("trial", range(8))
def test_flipped_bits_are_named_and_mended(copy, complete, trial):
    """One bit of every file, all at once; then each file alone."""
    random = np.random.default_rng(trial)
    whole = content(copy)
    for name in whole:
        flip(copy / name, random)
    if trial % 2:
        (copy / COPY_NAME).write_bytes(whole[COPY_NAME])
    damaged = {item.file for item in examine(copy).damage} if trial % 2 else None
    if damaged is not None:
        assert damaged == set(whole) - {COPY_NAME}
    else:
        with pytest.raises(UserError, match="damaged"):
            examine(copy)
    repairs = repair(copy)
    assert repairs.left == []
    assert {name for name in whole if any(str(copy / name) in line for line in repairs.mended)} >= damaged_names(
        whole, trial
    )
    assert content(copy) == whole == content(complete)


def damaged_names(whole: dict[str, bytes], trial: int) -> set[str]:
    return set(whole) - ({COPY_NAME} if trial % 2 else set())


def test_each_file_alone(copy):
    random, whole = np.random.default_rng(0), content(copy)
    for name in whole:
        flip(copy / name, random)
        assert [item.file for item in examine(copy).damage] == [name]
        repairs = repair(copy)
        assert len(repairs.mended) == 1
        assert name in repairs.mended[0]
        assert repairs.left == []
        assert content(copy) == whole


def test_random_bytes(tmp_path):
    """A few trials of the script that does hundreds (`tests/annotate/run/flips.py`)."""
    directory = flips.make(tmp_path)
    whole = flips.content(directory)
    for number in range(12):
        flips.attempt(directory, whole, number, seed=1)


@pytest.mark.parametrize("damage", ["lost", "empty", "longer"])
def test_lost_truncated_and_longer_files(copy, damage):
    whole = content(copy)
    for name in whole:
        path = copy / name
        if damage == "lost":
            path.unlink()
        else:
            path.write_bytes(b"" if damage == "empty" else whole[name] + b"\n")
        expected = [] if whole[name] == b"" and damage == "empty" else [name]
        assert [item.file for item in examine(copy).damage] == expected
        path.write_bytes(whole[name])


def test_foreign_files(copy):
    whole = content(copy)
    for name in ("part-00009.parquet", "state/x.parquet", "tokenizer/added_tokens.json"):
        (copy / name).write_bytes(b"x")
    (copy / "README.md").write_text("mine")
    (copy / ".part-00001.parquet.0123456789ab.tmp").write_bytes(b"x")
    (copy / ".work").mkdir()
    (copy / ".work" / "plan.json").write_text("{}")
    found = examine(copy)
    assert {(item.file, item.kind) for item in found.damage} == {
        ("part-00009.parquet", "stray"),
        ("state/x.parquet", "stray"),
        ("tokenizer/added_tokens.json", "stray"),
    }
    notes = "\n".join(found.notes)
    assert "README.md" in notes
    assert "1 temporary file" in notes
    assert "unfinished run" in notes
    assert len(repair(copy).mended) == 3
    assert (copy / "README.md").is_file()
    for name in whole:
        assert (copy / name).read_bytes() == whole[name]


def test_both_manifests_damaged_beyond_agreement(copy):
    for name in (MANIFEST_NAME, COPY_NAME):
        (copy / name).write_bytes((copy / name).read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be made again"):
        repair(copy)


def test_a_tokenizer_that_is_gone_is_said(copy, tmp_path, sample_tokenizer):
    moved = tmp_path / "tokenizer"
    shutil.copytree(sample_tokenizer, moved)
    settings = Settings(data="sample", groupers=("random",), out=tmp_path / "x", tokenizer=str(moved), engine="local")
    run(settings, Console(quiet=True))
    (tmp_path / "x" / "tokenizer" / "tokenizer.json").write_text("{}")
    shutil.rmtree(moved)
    repairs = repair(tmp_path / "x")
    assert len(repairs.left) == 1
    assert "cannot be loaded now" in repairs.left[0]


def test_without_the_source(copy, complete, monkeypatch):
    """What the shards and the manifests tell is mended; the rest is said, and mended once the source is back."""
    data, whole = complete.parent / "data.jsonl", content(copy)
    data.rename(data.with_suffix(".away"))
    try:
        for name in ("part-00001.parquet", "rejects.jsonl", MANIFEST_NAME):
            (copy / name).write_bytes(b"x" if name != "rejects.jsonl" else b"")
        repairs = repair(copy)
        assert len(repairs.mended) == 1
        assert len(repairs.left) == 2
        assert all("From the source it cannot be made" in sentence for sentence in repairs.left)
        assert {item.file for item in examine(copy).damage} == {"part-00001.parquet", "rejects.jsonl"}
        (copy / "part-00001.parquet").write_bytes(whole["part-00001.parquet"])
        (copy / "state/tfidf.parquet").unlink()
        assert "state/tfidf.parquet: made again from the shards' tokens" in repair(copy).mended[0]
    finally:
        data.with_suffix(".away").rename(data)
    assert repair(copy).left == []
    assert content(copy) == whole


def test_the_commands(copy, complete):
    runner = CliRunner()
    result = runner.invoke(app, ["verify", str(copy)])
    assert result.exit_code == 0, result.output
    assert "3 shards are whole" in result.output
    (copy / "state" / "tfidf.parquet").write_bytes(b"")
    result = runner.invoke(app, ["verify", str(copy)])
    assert result.exit_code == 1
    assert "tfidf.parquet" in str(result.exception)
    result = runner.invoke(app, ["verify", "--repair", str(copy)])
    assert result.exit_code == 0, result.output
    assert "mended: " in result.output
    assert content(copy) == content(complete)


def test_on_a_store(copy, s3):
    """The same on a real S3 server."""
    place = locate(s3)
    for name, data in content(copy).items():
        (place / name).write_bytes(data)
    assert verify_shards(s3) == verify_shards(copy)
    (place / "state/tfidf.parquet").write_bytes(b"x")
    (place / "tokenizer/tokenizer.json").delete()
    (place / MANIFEST_NAME).delete()
    (place / "part-00001.parquet").write_bytes((copy / "part-00000.parquet").read_bytes())
    found = {item.file for item in examine(s3).damage}
    assert found == {"state/tfidf.parquet", "tokenizer/tokenizer.json", MANIFEST_NAME, "part-00001.parquet"}
    assert repair(s3).left == []
    verify_shards(s3)
    assert {name: (place / name).read_bytes() for name in place.files()} == content(copy)
