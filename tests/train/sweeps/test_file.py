"""A sweep's file: what is wrong with it, all of it together, before anything starts."""

import pytest

from common.errors import UserError
from train.sweeps.file import SweepFile, flag_problems, read_sweep_file

WHOLE = "base: {shards: s}\nseeds: [1, 2]\ngrid: {eta: [0.5, 0.7]}\n"


def read(tmp_path, text, *changes):
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    return read_sweep_file(str(path), changes)


def test_a_whole_file(tmp_path):
    sweep, problems = read(tmp_path, WHOLE + "points:\n  - {objective: sft}\n  - {objective: go, name: mine}\n")
    assert problems == []
    assert sweep == SweepFile(
        {"shards": "s"}, [1, 2], {"eta": [0.5, 0.7]}, [{"objective": "sft"}, {"objective": "go", "name": "mine"}]
    )


class TestSet:
    def test_lies_over_the_file(self, tmp_path):
        changes = ("max_steps=20", "--base.seed_x=1", "grid.eta=[0.9]", "seeds=[7]", "control=false", "model=a=b")
        sweep, problems = read(tmp_path, WHOLE, *changes)
        assert problems == []
        assert sweep.base == {"shards": "s", "max_steps": 20, "seed_x": 1, "model": "a=b"}
        assert (sweep.grid, sweep.seeds, sweep.control) == ({"eta": [0.9]}, [7], False)

    def test_makes_the_sections_that_the_file_lacks(self, tmp_path):
        sweep, problems = read(tmp_path, "seeds: [1]\n", "shards=s", "grid.eta=[0.5]")
        assert (problems, sweep.base, sweep.grid) == ([], {"shards": "s"}, {"eta": [0.5]})

    @pytest.mark.parametrize("change", ["max_steps", "=3", "points.0=1", "eta=[0.5"])
    def test_what_it_cannot_set_is_a_problem(self, tmp_path, change):
        assert f"--set {change}: expected" in "\n".join(read(tmp_path, WHOLE, change)[1])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("base: {shards: s}\nseeds: [1]\ngrid: {}\n", "grid: is empty"),
        ("base: {shards: s}\nseeds: [1]\ngrid: {eta: []}\n", "grid: eta has no values"),
        ("base: {shards: s}\nseeds: [1]\ngrid: {eta: 0.5}\n", "grid: eta expected a list of values, found 0.5"),
        ("base: {shards: s}\nseeds: [1]\ngrid: {eta: [0.5, 0.5]}\n", "grid: eta has a value twice"),
        ("base: {shards: s}\nseeds: [1]\npoints: []\n", "points: is empty"),
        ("base: {shards: s}\nseeds: [1]\npoints: [go]\n", "points[0]: expected flags with values, found str"),
        ("base: {shards: s}\nseeds: [1]\npoints: [{eta: 0.5}, {eta: 0.5}]\n", "points[1]: is the same as points[0]"),
        ("base: {shards: s}\nseeds: [1]\npoints: [{name: 3}]\n", "points[0]: name expected text, found 3"),
        ("base: {shards: s}\nseeds: [1]\npoints: [{name: ''}]\n", "points[0]: name expected text, found ''"),
        ("base: {shards: s}\nseeds: [1]\npoints: [{control: maybe}]\n", "points[0]: control expected true or false"),
        ("base: {shards: s}\nseeds: [1]\ncontrol: 3\n", "control: expected true or false, found 3"),
        ("base: {shards: s}\nseeds: [1, 2, 1]\n", "seeds: 1 is there twice"),
        ("base: {shards: s}\nseeds: 3\n", "seeds: expected a list of whole numbers such as [1, 2, 3], found 3"),
        ("base: {shards: s}\nseeds: []\n", "seeds: expected a list"),
        ("base: {shards: s}\n", "seeds: expected a list"),
        ("base: {shards: s}\nseeds: [1.5, true, -1]\n", "found 1.5, True, -1"),
        ("base: [s]\nseeds: [1]\n", "base: expected flags with values, found list"),
        ("seeds: [1]\n", "base: expected the settings that all runs share"),
        ("base: {shards: s}\nseed: [1]\nseeds: [1]\n", "seed: no such key; expected base, seeds, grid, points"),
        ("base: {eta: 0.5}\nseeds: [1]\ngrid: {eta: [0.5]}\n", "eta: is in `base` and in `grid`"),
        ("base: {}\nseeds: [1]\npoints: [{eta: 0.5}]\ngrid: {eta: [0.7]}\n", "points[0]: eta is in `grid` too"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, expected):
    assert expected in "\n".join(read(tmp_path, text)[1])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- 1\n", "expected a mapping"),
        ("", "expected a mapping"),
        ("just words", "expected a mapping"),
        ("base: {a: [1\n", "expected YAML"),
        ("base: {a: 1, a: 2}\n", "'a' is given twice"),
    ],
)
def test_what_is_no_sweep_at_all(tmp_path, text, expected):
    with pytest.raises(UserError, match=expected):
        read(tmp_path, text)


def test_no_file(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_sweep_file(str(tmp_path / "none.yaml"))


def test_problems_come_together(tmp_path):
    text = "base: {shards: s}\nseeds: [1, 1]\ngrid: {eta: []}\npoints: [{name: 3}]\ncontrol: 2\n"
    assert len(read(tmp_path, text)[1]) == 4


def test_unknown_flags_are_named_with_the_nearest_and_where_they_stand():
    sweep = SweepFile({"learning_rat": 1, "output_dir": "x"}, [1], {"etaa": [1]}, [{"name": "a", "lamda_max": 1}])
    known = {"learning_rate", "eta", "lambda_max", "output_dir"}
    assert flag_problems(sweep, known) == [
        "base: `train run` has no flag 'learning_rat'. Did you mean learning_rate?",
        "base: output_dir is not for the file: each run has its own directory, DIR/runs/<point>/<seed>.",
        "grid: `train run` has no flag 'etaa'. Did you mean eta?",
        "points[0]: `train run` has no flag 'lamda_max'. Did you mean lambda_max?",
    ]


def test_flags_may_be_spelled_either_way(tmp_path):
    text = "base: {shards: s, --max-steps: 3}\nseeds: [1]\ngrid: {lambda-max: [0.5]}\npoints: [{worst-over: batch}]\n"
    sweep, problems = read(tmp_path, text, "save-steps=2")
    assert problems == []
    assert sweep.base == {"shards": "s", "max_steps": 3, "save_steps": 2}
    assert (sweep.grid, sweep.points) == ({"lambda_max": [0.5]}, [{"worst_over": "batch"}])
    assert "max_steps: is given twice" in read(tmp_path, "base: {max-steps: 1, max_steps: 2}\nseeds: [1]\n")[1][0]
