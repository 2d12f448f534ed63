"""The promise of the registry: a file and a line give a grouper its flags, help, refusals, parameters and scores."""

import dataclasses
import json
import re

import pyarrow.parquet as pq
import pytest

from annotate.cli import main
from annotate.groupers import REGISTRY, grouper_class
from annotate.groupers.base import Flags, GrouperOptions
from annotate.run.flags import WithGroupers
from common.errors import UserError
from tests.annotate.groupers import own


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(REGISTRY, *own.LINE)


def annotate(monkeypatch, *words: object) -> int:
    """Run the command in this process, and return its exit code."""
    monkeypatch.setattr("sys.argv", ["annotate", *map(str, words)])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code


def run(monkeypatch, out, *words: object) -> int:
    return annotate(monkeypatch, "run", "--engine", "local", "--limit", 5, "--out", out, *words)


def plain(text: str) -> str:
    return " ".join(re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", "", text).split())


@pytest.mark.usefixtures("registered")
class TestOwnGrouper:
    def test_its_flags_are_in_the_help(self, monkeypatch, capsys):
        assert annotate(monkeypatch, "run", "--help") == 0
        text = plain(capsys.readouterr().out)
        assert re.search(r"--own-power \S+ The power of a token's place. Default: 1. \(own\)", text)
        assert re.search(r"--own-back( \S+)? Count places from the end. \(own\)", text)
        assert "or own. Give it several times" in text

    def test_wrong_values_and_wrong_groupers_are_refused(self, monkeypatch, capsys, tmp_path):
        out = tmp_path / "out"
        assert run(monkeypatch, out, "--grouper", "own", "--own-power", "-1", "--max-length", 1) == 1
        found = capsys.readouterr().err
        assert "--own-power: expected at least 0, found -1.0." in found
        assert "--max-length 1: expected at least 2 tokens." in found  # all together
        assert run(monkeypatch, out, "--grouper", "tfidf", "--own-power", 2) == 1
        assert "--own-power is read by none of tfidf" in capsys.readouterr().err
        assert run(monkeypatch, out, "--grouper", "own", "--own-back", "--own-power", "much") == 2
        assert "Invalid value for '--own-power'" in plain(capsys.readouterr().err)
        assert not out.exists()

    @pytest.mark.parametrize(
        ("words", "parameters"),
        [
            ([], {"own_power": 1.0, "own_back": False}),
            (["--own-power", "2", "--own_back"], {"own_power": 2.0, "own_back": True}),
            (["--own-power", "0"], {"own_power": 0.0, "own_back": False}),
        ],
    )
    def test_the_command_scores_and_records_it(self, monkeypatch, tmp_path, words, parameters, capsys):
        out = tmp_path / "out"
        assert run(monkeypatch, out, "--grouper", "own", "--grouper", "random", "--seed", 3, *words) == 0
        held = {
            item["name"]: item["parameters"] for item in json.loads((out / "manifest.json").read_text())["groupers"]
        }
        assert held == {"own": parameters, "random": {"seed": 3}}
        for row in pq.read_table(sorted(out.glob("part-*.parquet")))["own"].to_pylist():
            places = [float(place) ** parameters["own_power"] for place in range(len(row))]
            assert row == (places[::-1] if parameters["own_back"] else places)
        assert annotate(monkeypatch, "verify", out) == 0
        assert run(monkeypatch, out, "--grouper", "own", "--own-power", "7") == 1
        assert f"own_power was {parameters['own_power']}, now 7.0" in capsys.readouterr().err


def test_without_the_line_there_is_no_flag(monkeypatch, capsys, tmp_path):
    assert run(monkeypatch, tmp_path / "out", "--own-power", "1") == 2
    assert "No such option: --own-power" in plain(capsys.readouterr().err)


@pytest.mark.parametrize("name", list(REGISTRY))
def test_every_flag_has_a_default_and_a_help(name):
    kind = grouper_class(name).Flags
    assert kind().problems() == []
    assert all(item.metadata["help"] for item in dataclasses.fields(kind))
    assert GrouperOptions(other=1).read(kind) == kind()


def test_flags_that_cannot_be(monkeypatch):
    """A type that no command line has; and one name for two things."""

    @dataclasses.dataclass(frozen=True)
    class Odd(Flags):
        odd: dict | None = dataclasses.field(default=None, metadata={"help": "Odd."})

    @dataclasses.dataclass(frozen=True)
    class Seed(Flags):
        seed: str | None = dataclasses.field(default=None, metadata={"help": "Seed."})

    monkeypatch.setitem(REGISTRY, *own.LINE)
    command = WithGroupers(lambda **_: None, "How.")
    for flags, message in ((Odd, "odd: a flag is one of str, int, float, bool"), (Seed, "own and random have seed")):
        monkeypatch.setattr(own.Own, "Flags", flags)
        with pytest.raises(TypeError, match=message):
            command.__signature__  # noqa: B018


def test_options_are_what_was_given():
    options = dataclasses.replace(GrouperOptions(seed=5, device=None), max_length=7, device="cpu")
    assert (options.max_length, dict(options.flags)) == (7, {"seed": 5, "device": "cpu"})
    assert dict(dataclasses.replace(options, seed=None).flags) == {"device": "cpu"}
    with pytest.raises(UserError, match="expected at least 0, found -2"):
        GrouperOptions(own_power=-2).read(own.OwnFlags)
