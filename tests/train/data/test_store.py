"""Shards on a real S3 server: the same rows as from a disk, damage named, and the whole command."""

import json
import subprocess

import numpy as np
import pytest

from common.errors import UserError
from common.manifest import MANIFEST_NAME
from common.storage import locate
from tests.stores import upload
from tests.train.conftest import COLUMNS, write_shards
from tests.train.test_command import TRAIN, fails
from train.data.loading import GroupPlan, load_data, open_shards

PLAN = GroupPlan("first", False, 0.5, "threshold")


@pytest.fixture
def stored(shards, s3):
    return upload(shards, f"{s3}/shards")


def load(path, cache):
    return load_data(open_shards([str(path)]), PLAN, 64, 0.0, 42, cache)


def test_the_same_rows(shards, stored, tmp_path):
    here, there = load(shards, tmp_path / "here"), load(stored, tmp_path / "there")
    assert here.report == there.report
    for mine, theirs in zip(here.train, there.train, strict=True):
        assert all(np.array_equal(mine[name], theirs[name]) for name in mine)
    assert {p.name for p in (tmp_path / "here").iterdir()} == {p.name for p in (tmp_path / "there").iterdir()}


def test_damage_is_named(stored, tmp_path):
    place = locate(stored)
    data = bytearray((place / "part-00001.parquet").read_bytes())
    data[len(data) // 2] ^= 1
    (place / "part-00001.parquet").write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"part-00001.parquet: expected SHA-256 .* content changed"):
        load(stored, tmp_path / "cache")  # seen when it is read: shards are fetched once
    (place / "part-00001.parquet").write_bytes(bytes(data[:-1]))
    (place / "part-00000.parquet").delete()
    with pytest.raises(UserError, match=r"(?s)part-00000.*no such file.*part-00001.*expected \d+ bytes"):
        open_shards([stored])
    (place / MANIFEST_NAME).write_bytes(b"{")
    with pytest.raises(UserError, match="part-00000"):
        open_shards([stored])


def test_what_is_not_there_is_said(s3, capsys):
    for url in (f"{s3}/nowhere", "s3://no-such-bucket/shards"):
        assert "no such directory" in fails(capsys, "run", "--shards", url)


@pytest.mark.slow
def test_the_whole_command(tokenizer, s3, tmp_path):
    """Two directories by URL, a tokenizer and a model from the store as well; the same losses as from a disk."""
    names = [str(write_shards(tmp_path / f"d{seed}", tokenizer, 20, COLUMNS, seed)) for seed in (0, 1)]
    urls = [upload(locate(name).local, f"{s3}/{locate(name).name}") for name in names]
    common = [
        "--grouper",
        "first",
        "--eta",
        "0.5",
        "--max_steps",
        "2",
        "--logging_steps",
        "1",
        "--per_device_train_batch_size",
        "4",
    ]
    losses = {}
    for kind, shards in (("disk", names), ("store", urls)):
        out = tmp_path / kind
        command = [TRAIN, "run", "--shards", *shards, *common, "--output_dir", out, "--save_strategy", "no"]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        entries = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        losses[kind] = [entry["loss"] for entry in entries if "loss" in entry]
        assert len(losses[kind]) == 2
        shards_of = [entry["path"] for entry in json.loads((out / "run.json").read_text())["shards"]]
        assert shards_of == shards
    assert losses["disk"] == losses["store"]
    model = upload(tmp_path / "store", f"{s3}/model")
    command = [TRAIN, "run", "--shards", urls[0], *common, "--model", model, "--output_dir", tmp_path / "next"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
