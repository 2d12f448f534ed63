"""The study's results: the kept metrics give the report, its statistics hold, and every arm is in it."""

import json
import re

import pytest

from tests.train.comparison.recomputing import recompute
from tests.train.studies.test_sweeps import STUDIES, points_of
from train.cli import main

STUDY = STUDIES / "small-cpu"
OF_THE_DAY = ("made",)  # when, by which command and version


@pytest.fixture(scope="module")
def report():
    return json.loads((STUDY / "report.json").read_text())


def test_the_kept_metrics_give_the_report(report, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(STUDY)
    with pytest.raises(SystemExit) as stop:
        main(["compare", "sweep", "untrained", "--baseline", "sft", "--json", str(tmp_path / "report.json")])
    assert stop.value.code == 0
    capsys.readouterr()
    again = json.loads((tmp_path / "report.json").read_text())
    for name in set(report) - set(OF_THE_DAY):
        (told, numbers), (told_again, numbers_again) = flat(report[name]), flat(again[name])
        assert told_again == told, name
        assert numbers_again == pytest.approx(numbers, rel=1e-9, abs=1e-12, nan_ok=True), name


def flat(value):
    """Return the leaves by their places: words, and numbers."""
    words, numbers, left = {}, {}, [("", value)]
    while left:
        place, one = left.pop()
        if isinstance(one, dict):
            left += [(f"{place}/{key}", item) for key, item in one.items()]
        elif isinstance(one, list):
            left += [(f"{place}/{index}", item) for index, item in enumerate(one)]
        elif isinstance(one, float):
            numbers[place] = one
        else:
            words[place] = one
    return words, numbers


def test_the_statistics_computed_again(report):
    assert recompute(report) == {"baseline", "control", "yardstick"}


def test_every_arm_of_the_design_is_in_the_report_with_all_its_seeds(report):
    sweep, points = points_of("small-cpu")
    seeds = {
        (v["point"], v["column"]): set(v["per_seed"]) for v in report["values"] if v["column"] in ("loss", "loss@lima")
    }
    for point in points:
        for column in ("loss", "loss@lima"):
            assert seeds[point.name, column] == {str(seed) for seed in sweep.seeds}
    assert report["unfinished"] == []
    results = (STUDY / "RESULTS.md").read_text()
    for point in points:
        assert point.name in results


def test_the_numbers_of_the_text_are_the_reports(report):
    rows = {(r["family"], r["point"], r["column"]): r for r in report["comparisons"]}
    number = r"([+−]\d\.\d{3})"
    found = 0
    for line in (STUDY / "RESULTS.md").read_text().splitlines():
        if not (name := re.match(r"\| `?([\w.-]+)`? \| [*+−]", line)):
            continue
        cells = line.strip("| ").split(" | ")
        for cell, (family, column) in zip(
            cells[1:], (("baseline", "loss"), ("control", "loss"), ("baseline", "loss@lima")), strict=True
        ):
            if not cell.strip():
                continue
            row = rows[family, name[1], column]
            told = [float(value.replace("−", "-")) for value in re.findall(number, cell)]
            assert told == pytest.approx([row["difference"], row["low"], row["high"]], abs=5.1e-4)
            assert cell.startswith("**") == row["holds"]
            found += 1
    assert found == 26
