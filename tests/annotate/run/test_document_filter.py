"""annotate select: S-IFD by hand and by the authors' way of computing it; quantiles; what train reads; refusals."""

import dataclasses
import itertools
import json
import shutil
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from annotate.cli import main
from annotate.run.document_filter import find_quantile, select_documents
from common.errors import UserError
from common.manifest import load_manifest
from common.shards import shard_schema, write_shard
from common.storage import locate
from tests.annotate.groupers.rho1.rho1_models import save_checkpoint
from train.data.loading import read_documents


def annotate(*words: object) -> int:
    before, sys.argv = sys.argv, ["annotate", *map(str, words)]
    try:
        with pytest.raises(SystemExit) as stop:
            main()
    finally:
        sys.argv = before
    return stop.value.code


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Sixty records over the words of the test tokenizer, in three shards, scored by a model with random weights."""
    home = tmp_path_factory.mktemp("select")
    random = np.random.default_rng(0)

    def words(most: int) -> str:
        return " ".join(f"w{token}" for token in random.integers(1, 90, random.integers(1, most)))

    data = home / "data.jsonl"
    data.write_text("".join(json.dumps({"prompt": words(9), "completion": words(8)}) + "\n" for _ in range(60)))
    model = save_checkpoint(home / "model")
    out = home / "shards"
    settings = ["--data", data, "--tokenizer", model, "--reference-model", model, "--rows-per-shard", 25, "--out", out]
    assert annotate("run", "--engine", "local", "--grouper", "sifd", "--grouper", "random", *settings) == 0
    assert len(load_manifest(out).shards) == 3
    return out


def slow_selection(shards, share: float, top: float) -> tuple[list[str], list[float], float]:
    """Row by row in plain Python: differences, one threshold for all of them, exp of means, a sort."""
    rows = pq.read_table(sorted(shards.glob("part-*.parquet"))).to_pylist()
    differences = [
        [-gain for gain, own in zip(row["sifd_gain"], row["supervised"], strict=True) if own] for row in rows
    ]
    threshold = np.percentile(np.abs(list(itertools.chain(*differences))), (1 - top) * 100) if top < 1 else -1
    found = []
    for row, values in zip(rows, differences, strict=True):
        chosen = [value for value in values if abs(value) > threshold]
        if np.exp(np.mean(values)) < 1 and chosen:
            found.append((np.exp(np.mean(chosen)), row["document_id"]))
    found.sort(key=lambda item: -item[0])
    kept = found[: int(np.ceil(round(share * len(rows), 9)))]
    return [name for _, name in kept], [score for score, _ in kept], float(threshold)


@pytest.mark.parametrize(("share", "top"), [(0.05, 0.5), (0.3, 0.5), (0.25, 0.1), (0.2, 1.0), (1.0, 0.75)])
def test_equals_a_plain_computation(shards, tmp_path, share, top):
    ids, scores, threshold = slow_selection(shards, share, top)
    found = select_documents(shards, "sifd", share, top, tmp_path / "ids.txt")
    assert (tmp_path / "ids.txt").read_text().split("\n") == [*ids, ""]
    assert (found.documents, found.kept) == (60, len(ids))
    assert (found.highest, found.lowest) == pytest.approx((scores[0], scores[-1]), rel=1e-6)
    if top < 1:
        assert found.threshold == pytest.approx(threshold, rel=1e-6)
    assert found.refused > 5  # IFD of 1 or above: a model with random weights knows nothing of prompts
    if share == 1:
        assert found.kept == 60 - found.refused - found.without_top


def test_by_hand(shards, tmp_path):
    """Six documents whose differences are set: the order, ties by place, and who is out."""
    gains = [[1.0, 0.0], [2.0, -0.5], [-3.0, 0.1], [0.01, 0.01], [2.0, 1.0, 0.0], [1.0, 0.0]]
    copy = tmp_path / "shards"
    table = pq.read_table(shards / "part-00000.parquet").slice(0, 6)
    flat = [np.array(row, dtype=np.float32) for row in gains]
    for name, values in {
        "sifd": [np.abs(row) for row in flat],
        "sifd_gain": flat,
        "supervised": [np.ones(len(row), dtype=bool) for row in flat],
    }.items():
        place = table.schema.get_field_index(name)
        column = pa.array([row.tolist() for row in values], type=table.schema.field(name).type)
        table = table.set_column(place, table.schema.field(name), column)
    shutil.copytree(shards, copy)
    manifest = load_manifest(copy)
    first, schema = manifest.shards[0], shard_schema(manifest.columns)
    written = write_shard(copy / first.file, table.cast(schema), 13)
    counts = dataclasses.replace(manifest.counts, documents=6)
    first = dataclasses.replace(first, rows=6, bytes=written.bytes, sha256=written.sha256)
    dataclasses.replace(manifest, shards=[first], counts=counts).save(locate(copy))
    # |Δ|: 3 2 2 1 1 1 .5 .1 .01 .01 0 0 0; the top 0.5 are above the median of thirteen, 0.5
    found = select_documents(copy, "sifd", 1.0, 0.5, tmp_path / "ids.txt")
    ids = table["document_id"].to_pylist()
    # S-IFD: exp(-1) of 0 and 5; exp(-2) of 1; 2 has IFD above 1; 3 has no top token; exp(-1.5) of 4
    assert (tmp_path / "ids.txt").read_text().split() == [ids[0], ids[5], ids[4], ids[1]]
    assert found.threshold == 0.5
    assert (found.refused, found.without_top, found.kept) == (1, 1, 4)
    assert (found.highest, found.lowest) == pytest.approx((np.exp(-1), np.exp(-2)))


def test_the_command_and_what_train_reads(shards, tmp_path, capsys):
    assert annotate("select", shards, "--share", "0.1", "--out", tmp_path / "ids.txt") == 0
    text = capsys.readouterr().out
    assert "kept       6, with scores from 0." in text
    assert f"Next: train run --shards {shards} --documents {tmp_path / 'ids.txt'}" in text
    assert read_documents(str(tmp_path / "ids.txt")) == frozenset(slow_selection(shards, 0.1, 0.5)[0])


def test_refusals(shards, tmp_path):
    out = tmp_path / "ids.txt"
    with pytest.raises(UserError, match=r"--share 0.*\n?.*--top 1.5") as error:
        select_documents(shards, "random", 0, 1.5, out)
    assert "--grouper random: it says nothing of whole documents; expected sifd" in str(error.value)
    with pytest.raises(UserError, match="expected one of tfidf"):
        select_documents(shards, "sifdd", 0.1, 0.5, out)
    assert annotate("run", "--engine", "local", "--limit", 5, "--out", tmp_path / "other") == 0
    with pytest.raises(UserError, match="holds the score columns tfidf, not 'sifd'"):
        select_documents(tmp_path / "other", "sifd", 0.1, 0.5, out)
    assert not out.exists()


def test_without_prompts_nothing_can_be_said(shards, tmp_path):
    """A plain corpus: every difference is 0, so no IFD is below 1."""
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"text": f"w{i} w{i + 1} w3"}) + "\n" for i in range(1, 9)))
    model = shards.parent / "model"
    words = ["--data", data, "--tokenizer", model, "--reference-model", model, "--out", tmp_path / "shards"]
    assert annotate("run", "--engine", "local", "--grouper", "sifd", *words) == 0
    with pytest.raises(UserError, match="of 8 documents 8 are refused by sifd's own rule"):
        select_documents(tmp_path / "shards", "sifd", 0.5, 0.5, tmp_path / "ids.txt")
    assert not (tmp_path / "ids.txt").exists()


@pytest.mark.parametrize("quantile", [0.0, 0.1, 0.5, 0.937, 1.0])
def test_quantiles_equal_numpys(quantile):
    random = np.random.default_rng(1)
    spread = (random.normal(size=1001) * 10.0 ** random.integers(-30, 30, 1001)).astype(np.float32)
    for values in (
        spread,
        np.abs(spread),
        np.float32([2.0]),
        np.float32([-0.0, 0.0, 0.0, 1.0]),
        np.full(9, -3.5, "f4"),
    ):
        parts = np.array_split(values.astype(np.float32), 4)
        expected = np.quantile(values.astype(np.float64), quantile)
        assert find_quantile(lambda parts=parts: parts, quantile) == pytest.approx(expected, rel=1e-12, abs=0)
    assert np.isnan(find_quantile(lambda: [np.zeros(0, dtype=np.float32)], quantile))
