"""The manifest names every file, proves itself whole, and has a copy that stands in for it."""

import json
from dataclasses import replace

import numpy as np
import pytest

from common.errors import UserError
from common.manifest import (
    COPY_NAME,
    MANIFEST_NAME,
    Counts,
    FileInfo,
    GrouperInfo,
    Manifest,
    ShardInfo,
    SourceInfo,
    TokenizerInfo,
    describe_files,
    load_manifest,
    manifest_hash,
    read_manifest,
)
from common.shards import ShardDirectory
from common.storage import locate

# Written by the first version of the format.
FIRST = """{
  "source": {"name": "x", "location": "/x", "revision": null, "content_hash": "0", "format": "text", "limit": null},
  "template": "plain",
  "tokenizer": {"name": "t", "revision": null, "fingerprint": "f"},
  "max_length": 8,
  "rows_per_shard": 4,
  "groupers": [{"name": "tfidf", "parameters": {}, "columns": {"tfidf": "importance"}, "report": {}}],
  "counts": {"documents": 1, "tokens": 3, "supervised_tokens": 2, "truncated": 0, "rejects": {}},
  "shards": [
    {"file": "part-00000.parquet", "rows": 1, "tokens": 3, "supervised_tokens": 2, "bytes": 9, "sha256": "a",
     "source_rows": 1, "truncated": 0, "counters": {}}
  ],
  "schema_version": 1,
  "product_version": "0.1.0"
}
"""


def make_manifest() -> Manifest:
    return Manifest(
        source=SourceInfo("Ünïcode", "x", None, "0", "text", None),
        template="plain",
        tokenizer=TokenizerInfo("t", None, "f"),
        max_length=8,
        rows_per_shard=4,
        groupers=[GrouperInfo("random", {"seed": 0}, {"random": "importance"}, {"mean": 0.1})],
        counts=Counts(1, 3, 2, 0, {"empty_response": 1}),
        shards=[ShardInfo("part-00000.parquet", 1, 3, 2, 9, "a")],
        files=[FileInfo("rejects.jsonl", 2, "b")],
    )


@pytest.fixture(params=["disk", "s3"])
def place(request, tmp_path):
    place = locate(tmp_path / "d" if request.param == "disk" else request.getfixturevalue("s3"))
    make_manifest().save(place)
    return place


def test_it_comes_back_as_it_was(place):
    read = read_manifest(place)
    assert read.manifest == make_manifest()
    assert read.note is None
    assert (place / MANIFEST_NAME).sha256()[0] == read.digest == manifest_hash(place)
    assert (place / MANIFEST_NAME).read_bytes() == (place / COPY_NAME).read_bytes()


def test_every_flipped_bit_is_seen_and_the_copy_is_read(tmp_path):
    make_manifest().save(tmp_path)
    whole = (tmp_path / MANIFEST_NAME).read_bytes()
    random = np.random.default_rng(0)
    for position in range(len(whole)):
        data = bytearray(whole)
        data[position] ^= 1 << random.integers(8)
        (tmp_path / MANIFEST_NAME).write_bytes(data)
        read = read_manifest(tmp_path)
        assert read.manifest == make_manifest(), position
        assert read.digest == locate(tmp_path / COPY_NAME).sha256()[0]
        assert f"{COPY_NAME}, is read" in read.note


@pytest.mark.parametrize("left", [b"", b"{", b"[]", b"null", None])
def test_truncated_and_lost(place, left):
    data = (place / MANIFEST_NAME).read_bytes()
    for content in (left, data[: len(data) // 2]):
        (place / MANIFEST_NAME).delete()
        if content is not None:
            (place / MANIFEST_NAME).write_bytes(content)
        read = read_manifest(place)
        assert read.manifest == make_manifest()
        assert "annotate verify --repair" in read.note


def test_both_damaged(place):
    for name in (MANIFEST_NAME, COPY_NAME):
        (place / name).write_bytes((place / name).read_bytes()[:-9])
    with pytest.raises(UserError, match=r"manifest\.json: the manifest is damaged"):
        load_manifest(place)
    (place / MANIFEST_NAME).delete()
    with pytest.raises(UserError, match=r"found no manifest\.json"):
        load_manifest(place)


def test_a_whole_manifest_of_a_later_version_is_refused_and_not_replaced_by_its_older_copy(tmp_path):
    make_manifest().save(tmp_path)
    older = (tmp_path / COPY_NAME).read_bytes()
    replace(make_manifest(), schema_version=99).save(tmp_path)
    later = (tmp_path / MANIFEST_NAME).read_bytes()
    with pytest.raises(UserError, match="expected schema version 2, found 99"):
        load_manifest(tmp_path)
    assert later != older


def test_the_first_version_of_the_format_is_read(tmp_path):
    (tmp_path / MANIFEST_NAME).write_text(FIRST)
    read = read_manifest(tmp_path)
    assert read.manifest.shards[0] == ShardInfo("part-00000.parquet", 1, 3, 2, 9, "a", 1)
    assert read.manifest.files == []
    assert read.manifest.schema_version == 1
    assert read.digest == locate(tmp_path / MANIFEST_NAME).sha256()[0]  # runs that recorded it can be resumed
    read.manifest.save(tmp_path)
    assert load_manifest(tmp_path) == read.manifest
    assert "checksum" not in json.loads((tmp_path / MANIFEST_NAME).read_text())


def test_every_file_is_described(place):
    for name in (
        "state/b.parquet",
        "state/a.parquet",
        "tokenizer/x/y.json",
        "rejects.jsonl",
        "other",
        ".work/plan.json",
    ):
        (place / name).write_text(name)
    files = describe_files(place)
    assert [file.file for file in files] == [
        "rejects.jsonl",
        "state/a.parquet",
        "state/b.parquet",
        "tokenizer/x/y.json",
    ]
    assert files[0] == FileInfo("rejects.jsonl", 13, (place / "rejects.jsonl").sha256()[0])


def test_a_directory_says_that_the_copy_is_read(tmp_path):
    replace(make_manifest(), shards=[]).save(tmp_path)
    assert ShardDirectory(tmp_path).notes == []
    (tmp_path / MANIFEST_NAME).write_bytes(b"")
    assert len(ShardDirectory(tmp_path).notes) == 1
