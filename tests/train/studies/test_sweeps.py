"""The studies' sweep files: every point is what `train run` takes, and every arm of the design is there."""

import re
import shutil
from pathlib import Path

import pytest

from tests.train.conftest import build_tokenizer, write_shards
from train.cli import main
from train.sweeps.file import read_sweep_file
from train.sweeps.points import make_points

STUDIES = Path(__file__).resolve().parents[3] / "train" / "studies"
COLUMNS = {
    "tfidf": "importance",
    "frequency": "importance",
    "entropy": "importance",
    "llmlingua2": "importance",
    "rho1": "reference_loss",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("studies")
    tokenizer = build_tokenizer("words of a study")
    write_shards(place / "shards" / "alpaca", tokenizer, 50, COLUMNS, max_length=4096)
    shutil.copytree(place / "shards" / "alpaca", place / "shards" / "lima")
    return place


def dry_run(study, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    with pytest.raises(SystemExit) as stop:
        main(["sweep", str(STUDIES / study / "sweep.yaml"), "--out", "sweep", "--dry-run"])
    assert stop.value.code == 0
    assert not (place / "sweep").exists()
    return capsys.readouterr().out


def points_of(study):
    sweep, problems = read_sweep_file(str(STUDIES / study / "sweep.yaml"))
    points, _, more = make_points(sweep)
    assert problems + more == []
    return sweep, points


def test_the_papers_runs(place, monkeypatch, capsys):
    assert "140 runs: 140 waiting" in dry_run("paper-h100", place, monkeypatch, capsys)
    sweep, points = points_of("paper-h100")
    presets = {path.stem for path in (STUDIES.parent / "settings").rglob("*.yaml")}
    assert {point.settings["preset"] for point in points} == presets
    assert len(presets) == 16
    assert {point.control_of for point in points if point.control_of} == {
        name for name in presets if "baseline" not in name
    }
    assert len(sweep.seeds) == 5


def test_the_small_study_is_its_design(place, monkeypatch, capsys):
    assert "55 runs: 55 waiting" in dry_run("small-cpu", place, monkeypatch, capsys)
    sweep, points = points_of("small-cpu")
    design = (STUDIES / "small-cpu" / "DESIGN.md").read_text()
    arms = {name for line in design.splitlines() if line.startswith("| `") for name in re.findall(r"`([\w-]+)`", line)}
    assert {point.name for point in points if point.control_of is None} == arms
    assert len(sweep.seeds) == 5
    for words in (
        f"{sweep.base['max_steps']} steps of {sweep.base['per_device_train_batch_size']} documents",
        "eta 0.7",
    ):
        assert words in design
