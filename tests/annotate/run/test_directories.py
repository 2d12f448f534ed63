"""A complete directory stays complete: columns without a source, failures, two writers, half-made swaps, lost files."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from annotate.groupers import REGISTRY
from annotate.groupers.base import GrouperOptions
from annotate.groupers.random import Random
from annotate.run import fitting, publishing, scoring
from annotate.run.pipeline import run
from annotate.run.settings import Settings
from annotate.run.verification import verify_shards
from annotate.run.writers import Writer
from annotate.tokens.batch import Scores, TokenBatch
from common.errors import UserError
from common.files import sha256_file
from common.manifest import load_manifest
from common.shards import ShardDirectory
from common.storage import StorageError, locate
from tests.annotate.groupers.own import Own

QUIET = Console(quiet=True)


def annotate(out: Path, *groupers: str, **settings):
    return run(Settings(out=out, groupers=groupers, **{"data": None, "engine": "local", **settings}), QUIET)


def contents(out: Path) -> dict[str, str]:
    return {str(path.relative_to(out)): sha256_file(path) for path in sorted(out.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def data(tmp_path_factory, sample_records):
    """Records of which some are rejected and some repeat."""
    lines = sample_records.read_text(encoding="utf-8").splitlines()[:60]
    lines[7] = '{"messages": []}'
    path = tmp_path_factory.mktemp("data") / "x.jsonl"
    path.write_text("\n".join([*lines, *lines[:9]]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def settings(data, sample_tokenizer):
    return {"data": str(data), "tokenizer": str(sample_tokenizer), "rows_per_shard": 20}


@pytest.fixture(scope="module")
def both(tmp_path_factory, settings):
    """What one run gives that makes all columns at once."""
    out = tmp_path_factory.mktemp("both") / "x"
    annotate(out, "tfidf", "frequency", "random", **settings)
    return out


@pytest.fixture(scope="module")
def complete(tmp_path_factory, settings):
    out = tmp_path_factory.mktemp("complete") / "x"
    annotate(out, "tfidf", **settings)
    return out


@pytest.fixture
def copy(complete, tmp_path):
    shutil.copytree(complete, tmp_path / "copy")
    return tmp_path / "copy"


def test_columns_are_added_without_the_source_and_its_tokenizer(copy, both, monkeypatch):
    monkeypatch.setattr("annotate.run.inputs.find_sources", lambda *a: pytest.fail("the source was asked for"))
    monkeypatch.setattr("annotate.run.inputs.load_target", lambda *a: pytest.fail("the tokenizer was loaded"))
    summary = annotate(copy, "random", "frequency")
    assert list(summary.manifest.columns) == ["tfidf", "random", "frequency"]
    verify_shards(copy)
    monkeypatch.undo()
    assert annotate(copy, "frequency").already_complete
    found, wanted = (ShardDirectory(out) for out in (copy, both))
    for left, right in zip(found.tables(list(wanted.columns)), wanted.tables(list(wanted.columns)), strict=True):
        assert left.equals(right)
    for name in ("state/frequency.parquet", "state/tfidf.parquet", "rejects.jsonl"):
        assert sha256_file(copy / name) == sha256_file(both / name)


class Picky(Own):
    """Rejects every third document."""

    name = "own"

    def score(self, batch: TokenBatch) -> Scores:
        return Scores(super().score(batch).columns, dict.fromkeys(range(0, len(batch), 3), "no"))


class Spanned(Own):
    """Wants spans, which only the source gives for sure."""

    name = "spanned"
    needs_spans = True

    def score(self, batch: TokenBatch) -> Scores:
        assert batch.spans is not None
        return Scores({"spanned": super().score(batch).columns["own"]})


def test_what_a_grouper_rejected_is_not_counted_when_shards_are_tokenized_again(copy, tmp_path, settings, monkeypatch):
    monkeypatch.setitem(REGISTRY, "own", f"{__name__}:Picky")
    monkeypatch.setitem(REGISTRY, "spanned", f"{__name__}:Spanned")
    rows = load_manifest(copy).counts.documents
    annotate(copy, "own")
    assert load_manifest(copy).counts.documents < rows
    shutil.copytree(copy, tmp_path / "from shards")
    annotate(tmp_path / "from shards", "frequency")
    annotate(copy, "frequency", "spanned", **settings)
    verify_shards(copy)
    states = [sha256_file(out / "state" / "frequency.parquet") for out in (copy, tmp_path / "from shards")]
    assert states[0] == states[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_length": 7}, "--max-length 7: .* was made with 4096"),
        ({"rows_per_shard": 7, "template": "alpaca"}, r"(?s)2 problems.*--template alpaca.*--rows-per-shard 7"),
    ],
)
def test_without_a_source_flags_that_say_something_else_are_refused(copy, complete, changes, message):
    with pytest.raises(UserError, match=message):
        annotate(copy, "random", **changes)
    assert contents(copy) == contents(complete)


def test_a_column_that_fails_leaves_the_directory_readable_and_repairable(copy, complete, settings, monkeypatch):
    original, calls = Random.score, []

    def fails(self, batch):
        calls.append(1)
        if len(calls) == 3:
            raise OSError("the disk is full")
        return original(self, batch)

    monkeypatch.setattr(Random, "score", fails)
    with pytest.raises(OSError, match="disk is full"):
        annotate(copy, "random")
    assert {k: v for k, v in contents(copy).items() if not k.startswith(".work")} == contents(complete)
    assert ShardDirectory(copy).columns == {"tfidf": "importance"}
    monkeypatch.undo()
    (copy / "part-00001.parquet").write_bytes(b"no")
    summary = annotate(copy, "tfidf", **settings)  # the first command, which does not know of `random`
    assert summary.shards_made == 1
    assert contents(copy) == contents(complete)


@pytest.mark.parametrize("moment", range(0, 12))
def test_a_swap_that_stops_anywhere_leaves_one_of_the_two_directories(copy, both, moment, monkeypatch):
    """Stop before the n-th file-system step of the swap; the manifest that is there names whole files."""
    steps = []

    def stops(function):
        def step(*arguments):
            if len(steps) == moment:
                raise KeyboardInterrupt
            steps.append(1)
            return function(*arguments)

        return step

    class Manifest(publishing.Manifest):
        save = stops(publishing.Manifest.save)

    monkeypatch.setattr(publishing, "_take_place", stops(publishing._take_place))
    monkeypatch.setattr(publishing.Manifest, "save", Manifest.save)
    try:
        annotate(copy, "frequency", "random")
    except KeyboardInterrupt:
        monkeypatch.undo()
        columns = ShardDirectory(copy).columns  # every shard is what the manifest says
        assert list(columns) == (["tfidf"] if moment == 0 else ["tfidf", "frequency", "random"])
    monkeypatch.undo()
    annotate(copy, "frequency", "random")
    assert not (copy / ".work").exists()
    drop = ("manifest.json", "manifest.copy.json")
    found, wanted = contents(copy), contents(both)
    assert {k: v for k, v in found.items() if k not in drop} == {k: v for k, v in wanted.items() if k not in drop}


def test_a_second_writer_is_told_who_holds_the_directory_since_when(copy, complete):
    code = (
        "import sys, time\nfrom annotate.run.writers import Writer\nfrom common.storage import StorageError, locate\n"
        "with Writer(locate(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(copy)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=rf"another run writes into it \(process {holder.pid} on .*, since 20\d\d-"):
            annotate(copy, "random")
    finally:
        holder.kill()
        holder.wait()
    annotate(copy, "random")  # the dead one holds nothing
    assert not (copy / ".writer.json").exists()
    verify_shards(copy)


def test_on_a_store_one_writer_holds_a_directory_until_it_is_silent(monkeypatch):
    from annotate.run import writers

    out = locate("memory://writers/x")
    with Writer(out), pytest.raises(UserError, match="another run writes into it"), Writer(out):
        pass
    (out / writers.WRITER_NAME).write_json({"host": "dead", "pid": 1, "since": "then", "alive": 0})
    monkeypatch.setattr(writers, "BEAT_S", 0.1)
    with Writer(out):
        assert (out / writers.WRITER_NAME).read_json()["host"] != "dead"
    assert not (out / writers.WRITER_NAME).is_file()


@pytest.mark.parametrize("module", [fitting, scoring])
def test_a_store_that_does_not_answer_is_no_damaged_shard(copy, monkeypatch, module):
    def refuse(*arguments):
        raise StorageError("no answer")

    monkeypatch.setattr(module, "read_table", refuse)
    with pytest.raises(StorageError, match="no answer"):
        annotate(copy, "frequency")


def test_lost_rejects_are_made_again_from_the_source_or_named(copy, complete, settings):
    (copy / "rejects.jsonl").unlink()
    with pytest.raises(UserError, match=r"(?s)rejects.jsonl: expected a file .*Give it with --data"):
        annotate(copy, "random")
    assert annotate(copy, "tfidf", **settings).shards_made == 2, "the shards that lack rows"
    assert contents(copy) == contents(complete)


def test_state_whose_bits_flipped_is_fitted_again_from_the_shards(copy, complete):
    path = copy / "state" / "tfidf.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    annotate(copy, "tfidf")
    assert contents(copy) == contents(complete)


def test_a_truncated_manifest_is_written_again_from_its_copy(copy, complete):
    (copy / "manifest.json").write_bytes((copy / "manifest.json").read_bytes()[:100])
    assert annotate(copy, "tfidf").already_complete
    assert contents(copy) == contents(complete)


def test_what_dead_writers_left_is_cleared(copy, complete):
    (copy / ".part-00000.parquet.0123456789ab.tmp").write_bytes(b"x")
    (copy / "state" / ".tfidf.parquet.0123456789ab.tmp").write_bytes(b"x")
    (copy / ".work" / "tokens").mkdir(parents=True)
    (copy / ".work" / "tokens" / "part-00000.arrow").write_bytes(b"x")
    assert annotate(copy, "tfidf").already_complete
    assert contents(copy) == contents(complete)


def test_scoring_a_shard_twice_is_harmless(tmp_path, settings, monkeypatch, complete):
    """The worker dies between its write and its answer: the same shard comes again."""
    original = scoring.Scorer.run

    def twice(self, item):
        first = original(self, item)
        assert original(self, item) == first
        return first

    monkeypatch.setattr(scoring.Scorer, "run", twice)
    annotate(tmp_path / "x", "tfidf", **settings)
    assert contents(tmp_path / "x") == contents(complete)


def test_a_seed_that_differs_is_refused_without_a_source_too(copy):
    annotate(copy, "random")
    with pytest.raises(UserError, match="seed was 0, now 5"):
        annotate(copy, "random", options=GrouperOptions(seed=5))
    assert load_manifest(copy).groupers[1].parameters == {"seed": 0}
    assert json.loads((copy / "manifest.json").read_text())["schema_version"] == 2
