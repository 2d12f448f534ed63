"""The run over a real S3 server, killed and resumed; and by two nodes that share no disk."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from annotate.run import writers
from annotate.run.verification import verify_shards
from annotate.run.writers import WRITER_NAME
from common.errors import UserError
from common.storage import Location, locate
from tests.annotate.run.two_nodes import run_on_two_nodes

ANNOTATE = [sys.executable, "-m", "annotate.cli", "run"]
ROOT = Path(__file__).resolve().parents[3]


def settings(data: str, out: str, tokenizer: Path) -> list[str]:
    return ["--data", data, "--out", out, "--tokenizer", str(tokenizer), "--rows-per-shard", "20"]


def contents(place: Location) -> dict[str, str]:
    """Digests of every file but the manifests, which name the place of the source."""
    return {name: (place / name).sha256()[0] for name in place.files() if not name.startswith("manifest")}


@pytest.fixture(scope="module")
def expected(tmp_path_factory, sample_records, sample_tokenizer):
    """The same records annotated on a disk by one process."""
    folder = tmp_path_factory.mktemp("expected")
    data = folder / "records.jsonl"
    data.write_text("".join(line + "\n" for line in sample_records.read_text().splitlines()[:130]))
    command = [*ANNOTATE, *settings(str(data), str(folder / "out"), sample_tokenizer), "--engine", "local"]
    subprocess.run(command, check=True, capture_output=True)
    return data, contents(locate(folder / "out"))


def test_of_two_writers_the_living_one_stays_and_a_silent_one_is_followed(s3, monkeypatch):
    monkeypatch.setattr(writers, "BEAT_S", 0.2)
    monkeypatch.setattr(writers, "SILENCE_S", 2.0)
    monkeypatch.setattr(writers, "WATCH_S", 0.1)
    place, told = locate(s3), []
    with writers.Writer(place), pytest.raises(UserError, match="another run writes into it"):
        writers.Writer(place, told.append).__enter__()
    assert len(told) == 1
    assert not (place / WRITER_NAME).exists()
    (place / WRITER_NAME).write_json({"host": "gone", "pid": 1, "since": "yesterday", "token": "x"})
    with writers.Writer(place) as follower:
        assert (place / WRITER_NAME).read_json()["token"] == follower._token


@pytest.mark.slow
def test_from_a_store_into_a_store_killed_and_resumed(expected, s3, sample_tokenizer):
    data, whole = expected
    locate(data).copy_to(locate(s3) / "data" / "records.jsonl")
    out = locate(s3) / "shards"
    command = [*ANNOTATE, *settings(f"{s3}/data/records.jsonl", str(out), sample_tokenizer), "--engine", "local"]
    for wanted in (".work/tokens/part-00001.arrow", "part-00002.parquet"):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (out / wanted).is_file():
            time.sleep(0.01)
        assert process.poll() is None, "it ended before it was killed"
        process.kill()
        assert process.wait() == -signal.SIGKILL
        if "tokens" in wanted:
            (out / WRITER_NAME).delete()  # spares this test the first of two waits until the dead run counts as dead
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "looking for 20 s whether it still does" in done.stderr
    assert contents(out) == whole
    verify_shards(str(out))
    again = subprocess.run(command, capture_output=True, text=True)
    assert "nothing to do" in again.stdout


@pytest.mark.slow
@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="mount namespaces need root and the command unshare"
)
def test_two_nodes_that_share_no_disk(expected, s3, s3_environment, sample_tokenizer):
    """Each node in a mount namespace of its own with another disk at /tmp; only the store is common: the same bytes."""
    data, whole = expected
    locate(data).copy_to(locate(s3) / "records.jsonl")
    words = [*ANNOTATE, *settings(f"{s3}/records.jsonl", f"{s3}/shards", sample_tokenizer), "--workers", "2"]
    environment = {**s3_environment, "PYTHONPATH": str(ROOT)}
    done = run_on_two_nodes(" ".join([*words, "--address", "{address}"]), environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert contents(locate(s3) / "shards") == whole
