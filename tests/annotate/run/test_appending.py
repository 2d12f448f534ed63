"""More records for a finished directory: rows, ids and scores by hand, then the same as one run over everything."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from annotate.cli import app
from annotate.groupers.base import GrouperOptions
from annotate.groupers.random import Random
from annotate.groupers.terms import load_counts
from annotate.run.dropping import drop_grouper
from annotate.run.pipeline import run
from annotate.run.repairs import repair
from annotate.run.settings import Settings
from annotate.run.verification import examine, verify_shards
from annotate.run.writers import Writer
from common.errors import UserError
from common.files import sha256_file
from common.manifest import load_manifest
from common.shards import ShardDirectory
from common.storage import locate

QUIET = Console(quiet=True)
MANIFESTS = ("manifest.json", "manifest.copy.json")


def annotate(out: Path, *groupers: str, **settings):
    return run(Settings(out=out, groupers=groupers, **{"data": None, "engine": "local", **settings}), QUIET)


def contents(out: Path, but: tuple[str, ...] = ()) -> dict[str, str]:
    found = {str(path.relative_to(out)): sha256_file(path) for path in sorted(out.rglob("*")) if path.is_file()}
    return {name: digest for name, digest in found.items() if name not in but}


def write(path: Path, records: list[dict]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def column(out: Path, name: str) -> list:
    return [value for table in ShardDirectory(out).tables([name]) for value in table[name].to_pylist()]


@pytest.fixture(scope="module")
def records(sample_records):
    return [json.loads(line) for line in sample_records.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def files(tmp_path_factory, records):
    """Two sources of which records are rejected, repeat within one and from one to the other; and both in one."""
    folder = tmp_path_factory.mktemp("data")
    empty = {"messages": []}
    one = [*records[:30], empty, *records[:9]]
    two = [*records[25:50], empty, *records[:12]]
    return {
        "one": write(folder / "one.jsonl", one),
        "two": write(folder / "two.jsonl", two),
        "three": write(folder / "three.jsonl", records[60:75]),
        "both": write(folder / "both.jsonl", one + two),
        "rejects": write(folder / "rejects.jsonl", [empty] * 3),
    }


@pytest.fixture(scope="module")
def settings(sample_tokenizer):
    return {"tokenizer": str(sample_tokenizer), "rows_per_shard": 20}


@pytest.fixture(scope="module")
def groupers():
    return "tfidf", "random", "frequency"


@pytest.fixture(scope="module")
def complete(tmp_path_factory, files, settings, groupers):
    out = tmp_path_factory.mktemp("one") / "x"
    annotate(out, *groupers, data=files["one"], **settings)
    return out


@pytest.fixture(scope="module")
def both(tmp_path_factory, files, settings, groupers):
    """One run over both sources."""
    out = tmp_path_factory.mktemp("both") / "x"
    annotate(out, *groupers, data=files["both"], **settings)
    return out


@pytest.fixture
def copy(complete, tmp_path):
    shutil.copytree(complete, tmp_path / "copy")
    return tmp_path / "copy"


def test_rows_ids_and_scores_by_hand(tmp_path, sample_tokenizer):
    """Three records and three more: `b` twice before, so that it is the third and the fourth; `c` is new."""
    a, b, c, bad = {"text": "a a b"}, {"text": "b"}, {"text": "c"}, {"text": ""}
    one, two = write(tmp_path / "one.jsonl", [b, a, b]), write(tmp_path / "two.jsonl", [b, bad, c, b])
    out = tmp_path / "x"
    annotate(out, "frequency", data=one, tokenizer=str(sample_tokenizer), rows_per_shard=2)
    before, tokens = contents(out, MANIFESTS), load_manifest(out).counts.tokens
    summary = annotate(out, data=two, append=True)
    verify_shards(out)
    manifest = summary.manifest
    assert summary.shards_made == 2
    assert [shard.file for shard in manifest.shards] == [f"part-0000{i}.parquet" for i in range(4)]
    assert column(out, "source_row") == [0, 1, 2, 3, 5, 6]
    hashes, numbers = zip(*(name.split("-") for name in column(out, "document_id")), strict=True)
    assert numbers == ("0", "0", "1", "2", "0", "3")
    assert hashes[0] == hashes[2] == hashes[3] == hashes[5]
    assert len(set(hashes)) == 3
    assert [json.loads(line)["source_row"] for line in (out / "rejects.jsonl").read_text().splitlines()] == [4]
    assert sum(manifest.counts.rejects.values()) == 1
    after = contents(out, MANIFESTS)
    assert {name: after[name] for name in before if name != "rejects.jsonl"} == {
        name: digest for name, digest in before.items() if name != "rejects.jsonl"
    }
    # What was fitted stays: the counts of the first three, in which `c` counts as one that is held once.
    counts, total = load_counts(out / "state" / "frequency.parquet", "count")
    assert total == tokens
    ids, scores = column(out, "input_ids"), column(out, "frequency")
    held = np.append(counts, np.zeros(max(max(row) for row in ids) + 1, dtype=np.int64))
    for row, score in zip(ids, scores, strict=True):
        np.testing.assert_allclose(score, -np.log(np.maximum(held[row], 1) / tokens), atol=1e-6)
    assert held[ids[4]].min() == 0
    assert manifest.groupers[0].fitted_shards == 2
    assert [(part.source.name, part.first_shard, part.rows_per_shard) for part in manifest.parts] == [
        (one, 0, 2),
        (two, 2, 2),
    ]


def test_with_refit_the_same_bytes_as_one_run_over_both(copy, both, files):
    """40 records in shards of 20, then 38: the shards fall together, so the bytes do."""
    summary = annotate(copy, data=files["two"], append=True, refit=True)
    verify_shards(copy)
    assert contents(copy, MANIFESTS) == contents(both, MANIFESTS)
    found, wanted = summary.manifest, load_manifest(both)
    assert (found.shards, found.files, found.counts) == (wanted.shards, wanted.files, wanted.counts)
    assert found.groupers == wanted.groupers


def test_first_appended_and_then_refitted(copy, both, files, groupers):
    annotate(copy, data=files["two"], append=True)
    kept = load_manifest(copy)
    assert {g.name: g.fitted_shards for g in kept.groupers} == {"tfidf": 2, "random": None, "frequency": 2}
    for name in ("document_id", "source_row", "text", "input_ids", "supervised", "random"):
        assert column(copy, name) == column(both, name)
    assert column(copy, "tfidf") != column(both, "tfidf")
    annotate(copy, refit=True)
    assert contents(copy, MANIFESTS) == contents(both, MANIFESTS)
    before = contents(copy)
    assert annotate(copy, refit=True).already_complete
    assert contents(copy) == before


def test_other_shard_sizes_give_the_same_rows_ids_and_scores(tmp_path, files, both, groupers, settings):
    out = tmp_path / "x"
    annotate(out, *groupers, data=files["one"], **{**settings, "rows_per_shard": 7})
    annotate(out, data=files["two"], append=True, refit=True, rows_per_shard=50)
    verify_shards(out)
    for name in ("document_id", "source_row", "text", "input_ids", "supervised", *groupers):
        assert column(out, name) == column(both, name)
    assert sha256_file(out / "rejects.jsonl") == sha256_file(both / "rejects.jsonl")
    assert [part.rows_per_shard for part in load_manifest(out).parts] == [7, 50]


def test_three_sources(copy, files):
    annotate(copy, data=files["two"], append=True)
    annotate(copy, data=files["three"], append=True)
    verify_shards(copy)
    ids = column(copy, "document_id")
    assert len(set(ids)) == len(ids)
    assert column(copy, "source_row") == [row for row in range(93) if row not in (30, 65)]
    assert [g.fitted_shards for g in load_manifest(copy).groupers] == [2, None, 2]


def test_the_same_source_again_does_nothing_and_says_so(copy, files):
    annotate(copy, data=files["two"], append=True)
    before = contents(copy)
    console = Console(file=(said := io.StringIO()), soft_wrap=True)
    for name in ("one", "two"):
        summary = run(Settings(files[name], (), copy, engine="local", append=True), console)
        assert summary.already_complete
    assert said.getvalue().count("nothing is appended") == 2
    assert contents(copy) == before


def refused(out: Path, message: str, **settings) -> None:
    before = contents(out)
    with pytest.raises(UserError, match=message):
        annotate(out, *settings.pop("groupers", ()), **settings)
    shutil.rmtree(out / ".work", ignore_errors=True)  # compressed sources are unpacked there before they are refused
    assert contents(out) == before


def test_what_does_not_fit_is_refused_and_nothing_changes(copy, files, tmp_path, sample_tokenizer, records):
    from transformers import AutoTokenizer

    other = AutoTokenizer.from_pretrained(sample_tokenizer)
    other.add_tokens(["a new token"])
    other.save_pretrained(tmp_path / "other")
    two = {"data": files["two"], "append": True}
    refused(copy, "template was plain, now alpaca|--template was .*, now alpaca", **two, template="alpaca")
    refused(copy, "--max-length was 4096, now 100", **two, max_length=100)
    refused(copy, "tokenizer fingerprint was", **two, tokenizer=str(tmp_path / "other"))
    refused(copy, "--overlong was truncate, now split", **two, overlong="split")
    refused(
        copy, "(?s)already, read with other settings.*--limit was None, now 7", **two | {"data": files["one"]}, limit=7
    )
    refused(copy, "all 3 records were rejected .*the first: .*stays as it was", **two | {"data": files["rejects"]})
    (tmp_path / "empty.jsonl").write_text("")
    refused(copy, "found an empty file", **two | {"data": str(tmp_path / "empty.jsonl")})
    (tmp_path / "blank.jsonl").write_text("\n\n")
    refused(copy, "expected records, found none", **two | {"data": str(tmp_path / "blank.jsonl")})
    refused(copy, "--append: name the records", append=True)
    refused(copy, "--grouper entropy: .* holds tfidf, random, frequency", **two, groupers=("entropy",))
    refused(copy, "seed was 0, now 3", **two, groupers=("random",), options=GrouperOptions(seed=3))
    refused(copy, "--seed: --append takes the groupers' settings from", **two, options=GrouperOptions(seed=3))
    refused(
        copy, "--append to add other records", data=files["two"], groupers=("tfidf",), tokenizer=str(sample_tokenizer)
    )
    with Writer(locate(copy)):
        refused(copy, "another run writes into it", **two)
    with pytest.raises(UserError, match="--append: expected a finished shard directory, found none"):
        annotate(tmp_path / "new", **two)
    assert not (tmp_path / "new").exists()


def test_refit_needs_something_that_is_fitted(tmp_path, files, settings):
    annotate(tmp_path / "x", "random", data=files["one"], **settings)
    refused(tmp_path / "x", "--refit: none of random is fitted", refit=True)


def stopped(monkeypatch, number: int):
    """Let the `number`-th call of a stage that scores raise."""
    original, calls = Random.score, []

    def score(self, batch):
        calls.append(1)
        if len(calls) == number:
            raise OSError("the disk is full")
        return original(self, batch)

    monkeypatch.setattr(Random, "score", score)


def test_an_unfinished_append_goes_on_by_its_command_and_no_other(copy, complete, both, files, monkeypatch):
    stopped(monkeypatch, 2)
    with pytest.raises(OSError, match="disk is full"):
        annotate(copy, data=files["two"], append=True, refit=True)
    monkeypatch.undo()
    assert ShardDirectory(copy).manifest == load_manifest(complete)
    verify_shards(copy)
    for other in (
        {"data": files["three"], "append": True},
        {"data": files["two"], "append": True},
        {"refit": True},
        {"groupers": ("tfidf",)},
    ):
        with pytest.raises(UserError, match=r"an unfinished --append of .*two.jsonl --refit has left its work there"):
            annotate(copy, *other.get("groupers", ()), **{k: v for k, v in other.items() if k != "groupers"})
    with pytest.raises(UserError, match="unfinished run has left its work"):
        drop_grouper(copy, "random")
    summary = annotate(copy, data=files["two"], append=True, refit=True)
    assert 0 < summary.shards_made < 4
    assert contents(copy, MANIFESTS) == contents(both, MANIFESTS)


@pytest.mark.parametrize("kind", ["append", "refit"])
def test_an_append_that_was_killed_while_it_cleared_up_is_done(copy, files, kind, monkeypatch):
    """Its manifest holds, and its work is still there."""
    more = {"data": files["two"], "append": True} if kind == "append" else {"refit": True}
    if kind == "refit":
        annotate(copy, data=files["two"], append=True)
    Place = type(locate(copy))
    original = Place.delete_tree
    monkeypatch.setattr(Place, "delete_tree", lambda self: None if self.name == ".work" else original(self))
    annotate(copy, **more)
    assert (copy / ".work" / "plan.json").is_file()
    monkeypatch.undo()
    whole = contents(copy)
    assert annotate(copy, **more).already_complete
    assert contents(copy) == {name: digest for name, digest in whole.items() if not name.startswith(".work")}


def test_an_unfinished_column_is_given_up_for_an_append(copy, both, files, monkeypatch):
    drop_grouper(copy, "random")
    stopped(monkeypatch, 2)
    with pytest.raises(OSError, match="disk is full"):
        annotate(copy, "random")
    monkeypatch.undo()
    annotate(copy, data=files["two"], append=True, refit=True)
    annotate(copy, "random")
    for name in ("document_id", "tfidf", "frequency", "random"):
        assert column(copy, name) == column(both, name)


def test_shards_state_and_rejects_of_every_source_are_mended(copy, files):
    annotate(copy, data=files["two"], append=True)
    annotate(copy, data=files["three"], append=True)
    whole = contents(copy)
    for damaged in (("part-00000",), ("part-00002", "part-00003"), ("part-00001", "part-00002", "part-00004")):
        for name in damaged:
            (copy / f"{name}.parquet").write_bytes(b"no")
        repairs = repair(copy)
        assert repairs.left == []
        assert len(repairs.mended) == len(damaged)
        assert contents(copy) == whole
    for names in (("rejects.jsonl",), ("state/tfidf.parquet", "state/frequency.parquet"), tuple(whole)[2:]):
        for name in names:
            (copy / name).unlink()
        repairs = repair(copy)
        assert repairs.left == []
        assert contents(copy) == whole


def test_without_one_of_the_sources_the_others_are_mended(copy, files, tmp_path, settings):
    shutil.copy(files["two"], tmp_path / "two.jsonl")
    annotate(copy, data=str(tmp_path / "two.jsonl"), append=True)
    whole = contents(copy)
    (tmp_path / "two.jsonl").rename(tmp_path / "gone.jsonl")
    for name in ("part-00000", "part-00002"):
        (copy / f"{name}.parquet").write_bytes(b"no")
    repairs = repair(copy)
    assert len(repairs.mended) == len(repairs.left) == 1
    assert "part-00000" in repairs.mended[0]
    assert "part-00002" in repairs.left[0]
    assert [item.file for item in examine(copy).damage] == ["part-00002.parquet"]
    with pytest.raises(UserError, match=r"(?s)part-00002.*Give it with --data; it was .*two.jsonl.*before you append"):
        annotate(copy, data=files["three"], append=True)
    assert not (copy / ".work").exists()
    summary = annotate(copy, "tfidf", data=str(tmp_path / "gone.jsonl"), **settings)
    assert summary.shards_made == 1
    assert contents(copy, MANIFESTS) == {name: digest for name, digest in whole.items() if name not in MANIFESTS}
    assert load_manifest(copy).parts[1].source.location == str(tmp_path / "gone.jsonl")


def test_a_fitted_column_that_is_added_later_counts_every_shard(copy, both, files):
    drop_grouper(copy, "frequency")
    annotate(copy, data=files["two"], append=True)
    annotate(copy, "frequency")
    assert sha256_file(copy / "state" / "frequency.parquet") == sha256_file(both / "state" / "frequency.parquet")
    assert [g.fitted_shards for g in load_manifest(copy).groupers] == [2, None, None]
    (copy / "state" / "tfidf.parquet").unlink()
    annotate(copy, "tfidf")
    verify_shards(copy)  # what was fitted on two shards is fitted on two shards again


def test_the_command(copy, both, files):
    words = ["run", "--engine", "local", "--out", str(copy), "--dry-run"]
    said = CliRunner().invoke(app, [*words, "--append", "--data", files["two"]]).output
    assert "tfidf, random, frequency" in said
    assert "2 of 20 records" in said
    said = CliRunner().invoke(app, [*words, "--refit"]).output
    assert "tfidf, frequency would be fitted on the 2 shards" in said
    result = CliRunner().invoke(
        app, ["run", "--append", "--refit", "--data", files["two"], "--engine", "local", "--out", str(copy)]
    )
    assert result.exit_code == 0, result.output
    assert "two.jsonl" in result.output
    assert contents(copy, MANIFESTS) == contents(both, MANIFESTS)
    for words in (["inspect", str(copy), "--grouper", "tfidf", "--eta", "0.5"], ["card", str(copy)]):
        assert CliRunner().invoke(app, words).exit_code == 0
