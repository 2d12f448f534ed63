"""The command `annotate` as a user types it."""

import subprocess
import sys
from pathlib import Path

import pytest


def annotate(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "annotate.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("command")
    return directory, annotate("run", "--engine", "local", "--limit", "30", "--out", "out", cwd=directory)


def test_a_run_prints_a_summary_and_the_next_command(finished):
    directory, result = finished
    assert result.returncode == 0, result.stderr
    assert "documents  30 (0 cut at 4,096 tokens)" in result.stdout
    assert "Next: train run --shards out --objective go --eta 0.7 --model tiny" in result.stdout
    assert (directory / "out" / "manifest.json").is_file()


def test_again_there_is_nothing_to_do(finished):
    directory, _ = finished
    result = annotate("run", "--engine", "local", "--limit", "30", "--out", "out", cwd=directory)
    assert "nothing to do" in result.stdout


def test_verify_says_what_is_wrong_and_where(finished):
    directory, _ = finished
    result = annotate("verify", "out", cwd=directory)
    assert result.returncode == 0
    assert "1 shard is whole: 30 documents" in result.stdout
    shard = directory / "out" / "part-00000.parquet"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-5])
    result = annotate("verify", "out", cwd=directory)
    shard.write_bytes(whole)
    assert result.returncode == 1
    assert "part-00000.parquet: expected" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere.json"], "Error: --data nowhere.json: no such file"),
        (["--grouper", "bm25"], "Error: --grouper bm25: expected one of tfidf"),
        (["--out", "/proc/x"], "cannot be written"),
    ],
)
def test_errors_are_sentences(tmp_path, arguments, message):
    result = annotate("run", "--engine", "local", *arguments, cwd=tmp_path)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_help_teaches():
    result = annotate("run", "--help")
    for flag in ("--data", "--grouper", "--tokenizer", "--template", "--format", "--max-length", "--out", "--limit"):
        assert flag in result.stdout
    for flag in ("--rows-per-shard", "--engine", "--address", "--workers", "--seed"):
        assert flag in result.stdout
    assert "Examples" in result.stdout
