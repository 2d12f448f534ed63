"""A dropped grouper leaves the directory that a run without it makes; until the last step the old one holds."""

import shutil
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from annotate.cli import app
from annotate.run import dropping
from annotate.run.dropping import drop_grouper
from annotate.run.pipeline import run
from annotate.run.settings import Settings
from annotate.run.verification import examine, verify_shards
from common.errors import UserError
from common.storage import locate
from tests.stores import upload


def annotate(out: Path, *groupers: str) -> None:
    settings = Settings(data="sample", groupers=groupers, out=out, limit=60, rows_per_shard=25, engine="local")
    run(settings, Console(quiet=True))


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dropping")
    annotate(folder / "three", "tfidf", "frequency", "random")
    annotate(folder / "two", "tfidf", "random")
    return folder


@pytest.fixture
def copy(complete, tmp_path):
    shutil.copytree(complete / "three", tmp_path / "copy")
    return tmp_path / "copy"


def content(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def test_it_is_as_if_it_had_never_been_there(copy, complete):
    assert list(drop_grouper(copy, "frequency").columns) == ["tfidf", "random"]
    assert content(copy) == content(complete / "two")
    annotate(copy, "frequency")  # and it can be added again
    verify_shards(copy)


@pytest.mark.parametrize("after", [0, 2])
def test_a_drop_that_stops_changes_nothing(copy, complete, monkeypatch, after):
    before, calls, original = content(copy), [], dropping.write_shard

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) > after:
            raise RuntimeError("killed")
        return original(*arguments)

    monkeypatch.setattr(dropping, "write_shard", failing)
    with pytest.raises(RuntimeError, match="killed"):
        drop_grouper(copy, "frequency")
    monkeypatch.undo()
    assert {name: data for name, data in content(copy).items() if not name.startswith(".work/")} == before
    assert examine(copy).damage == []
    drop_grouper(copy, "frequency")
    assert content(copy) == content(complete / "two")


def test_on_a_store(copy, complete, s3):
    upload(copy, s3)
    drop_grouper(s3, "frequency")
    verify_shards(s3)
    place = locate(s3)
    assert {name: (place / name).read_bytes() for name in place.files()} == content(complete / "two")


def test_refusals(copy, complete):
    with pytest.raises(UserError, match="holds tfidf, frequency, random"):
        drop_grouper(copy, "rho1")
    drop_grouper(copy, "tfidf")
    drop_grouper(copy, "frequency")
    with pytest.raises(UserError, match="holds nothing else"):
        drop_grouper(copy, "random")
    (copy / "part-00001.parquet").write_bytes(b"x")
    annotated = CliRunner().invoke(app, ["drop", str(complete / "nowhere"), "--grouper", "random"])
    assert annotated.exit_code == 1
    assert "no such directory" in str(annotated.exception)
    assert not (complete / "nowhere").exists()


def test_a_damaged_shard_is_named(copy):
    (copy / "part-00001.parquet").write_bytes(b"x")
    before = content(copy)
    with pytest.raises(UserError, match=r"part-00001\.parquet"):
        drop_grouper(copy, "random")
    assert {name: data for name, data in content(copy).items() if not name.startswith(".work/")} == before
