"""From a file to points: names, controls, and what is taken together; by hand."""

import dataclasses

import pytest

from tests.train.objectives import own
from train.objectives import OBJECTIVES
from train.objectives.reads import unread_settings
from train.sweeps.file import SweepFile
from train.sweeps.points import effective, make_points, words
from train.sweeps.validation import check_points


def names(**sections):
    points, _, problems = make_points(SweepFile(**{"base": {"shards": "s"}, "seeds": [1], **sections}))
    assert problems == []
    return [point.name for point in points]


def problems_of(**sections):
    return "\n".join(make_points(SweepFile(**{"base": {"shards": "s"}, "seeds": [1], **sections}))[2])


ISSUE = {"points": [{"objective": "sft"}, {"objective": "go", "grouper": "tfidf"}], "grid": {"eta": [0.5, 0.7, 0.9]}}


class TestPoints:
    def test_points_times_grid_with_controls(self):
        assert names(**ISSUE) == [
            "sft",
            *("go-tfidf-eta0.5", "go-tfidf-eta0.5.permuted"),
            *("go-tfidf-eta0.7", "go-tfidf-eta0.7.permuted"),
            *("go-tfidf-eta0.9", "go-tfidf-eta0.9.permuted"),
        ]

    def test_a_control_is_its_point_with_permuted_groups(self):
        points, _, _ = make_points(SweepFile({"shards": "s"}, [1], points=[{"objective": "go", "eta": 0.5}]))
        assert points[0].settings == {"shards": "s", "objective": "go", "eta": 0.5}
        assert points[1].settings == {**points[0].settings, "permute_groups": True}
        assert (points[0].control_of, points[1].control_of) == (None, points[0].name)

    def test_points_that_differ_in_what_is_not_read_are_one_and_that_is_said(self):
        points, notes, _ = make_points(SweepFile({"shards": "s"}, [1], **ISSUE))
        assert points[0].settings == {"shards": "s", "objective": "sft"}
        assert notes == ["sft: does not read eta, so 3 points of the file are one."]

    def test_objectives_and_groupers_in_the_grid(self):
        grid = {"objective": ["sft", "go"], "grouper": ["tfidf", "random"], "lambda_max": [0.5]}
        assert names(grid=grid, control=False) == ["sft", "go-tfidf", "go-random"]

    def test_what_is_not_read_does_not_vary_the_name(self):
        points = [{"objective": "sft", "lambda_max": 0.1}, {"objective": "go", "lambda_max": 0.5}]
        assert names(points=points, control=False) == ["sft", "go"]

    def test_the_base_gives_what_only_some_read(self):
        base = {"shards": "s", "lambda_max": 0.5, "eta": 0.9, "grouper": "tfidf"}
        points, _, _ = make_points(SweepFile(base, [1], points=[{"objective": "sft"}, {"objective": "go"}]))
        assert points[0].settings == {"shards": "s", "eta": 0.9, "grouper": "tfidf", "objective": "sft"}
        assert points[1].settings == {**base, "objective": "go"}

    def test_without_grid_and_points_the_base_is_the_point(self):
        assert names(base={"shards": "s", "objective": "sft"}) == ["sft"]
        assert names(control=False) == ["go"]

    def test_controls_can_be_left_out(self):
        assert names(**ISSUE, control=False) == ["sft", "go-tfidf-eta0.5", "go-tfidf-eta0.7", "go-tfidf-eta0.9"]
        points = [{"objective": "go", "control": False}, {"objective": "go", "eta": 0.9}]
        assert names(points=points) == ["go", "go-eta0.9", "go-eta0.9.permuted"]

    def test_a_permuted_point_has_no_control(self):
        assert names(points=[{"objective": "go", "permute_groups": True}]) == ["go"]

    def test_rho1_reads_eta_and_has_a_control(self):
        found = names(points=[{"objective": "rho1"}], grid={"eta": [0.5, 0.9]})
        assert found == ["rho1-eta0.5", "rho1-eta0.5.permuted", "rho1-eta0.9", "rho1-eta0.9.permuted"]

    def test_a_preset_says_what_is_read(self):
        base = {"shards": "s", "preset": "lima-3b-baseline"}
        points, notes, _ = make_points(SweepFile(base, [1], grid={"eta": [0.5, 0.9]}))
        assert [point.name for point in points] == ["sft"]
        assert "does not read eta" in notes[0]


class TestObjectives:
    """What a point reads is asked of the registered objectives, so a new one needs nothing here."""

    @pytest.mark.parametrize("name", list(OBJECTIVES))
    def test_its_own_settings_make_points_and_others_do_not(self, name):
        every = {flag.name for kind in OBJECTIVES.values() for flag in dataclasses.fields(kind.Settings)}
        own = {flag.name for flag in dataclasses.fields(OBJECTIVES[name].Settings)}
        unread = unread_settings({"objective": name})
        assert unread >= every - own
        assert not unread & (own - {"select_over"})  # which only dynamic groups have
        expected = [name, f"{name}.permuted"] if OBJECTIVES[name]().needs.kind else [name]
        assert names(points=[{"objective": name}]) == expected

    def test_dynamic_groups_read_other_settings(self):
        fixed, dynamic = ({"objective": "go", "dynamic_groups": flag} for flag in ("false", True))
        assert "select_over" in unread_settings(fixed)
        assert "ties" not in unread_settings(fixed)
        assert "select_over" not in unread_settings(dynamic)
        assert "ties" in unread_settings(dynamic)

    def test_quantiles_take_the_place_of_eta(self):
        points = [{"objective": "dro", "group_quantiles": "0.5,0.9"}]
        assert names(points=points, grid={"eta": [0.5, 0.7]}) == ["dro", "dro.permuted"]

    def test_settings_that_are_wrong_are_left_to_the_parser(self):
        assert unread_settings({"objective": "go", "group_quantiles": "high"}) == frozenset()
        assert unread_settings({"objective": "none"}) == frozenset()


class TestOwnObjective:
    """One class and one registry line are enough for points, their names, and what the file may say."""

    @pytest.fixture(autouse=True)
    def _registered(self, monkeypatch):
        monkeypatch.setitem(OBJECTIVES, own.Own.name, own.Own)

    def test_it_reads_its_flag_and_no_other_objectives(self):
        unread = unread_settings({"objective": "own", "own_power": 2.0})
        assert "own_power" not in unread
        assert {"lambda_max", "dro_step", "eta", "permute_groups"} <= unread
        assert "own_power" in unread_settings({"objective": "go"})

    def test_its_flag_makes_points(self):
        points = [{"objective": "go"}, {"objective": "own"}]
        found = names(points=points, grid={"own_power": [1.0, 2.0]})
        assert found == ["go", "go.permuted", "own-own_power1", "own-own_power2"]

    def test_every_point_is_parsed_as_a_run_would_be(self, shards):
        sizes, problems = self.check(shards, {"own_power": 2.0})
        assert (problems, sizes["own"].steps) == ([], 3)
        assert self.check(shards, {"own_power": -1})[1] == [
            "own: --own_power: expected a number of at least 0, found -1.0."
        ]
        assert (
            "`train run` has no flag 'own_powr'. Did you mean own_power?" in self.check(shards, {"own_powr": 1})[1][0]
        )

    def check(self, shards, settings):
        base = {"shards": str(shards), "model": "tiny", "max_steps": 3}
        sweep = SweepFile(base, [1], points=[{"objective": "own", **settings}])
        points, _, problems = make_points(sweep)
        assert problems == []
        return check_points(sweep, points, 1)


class TestNames:
    def test_given_ones_take_the_grid_behind_them(self):
        points = [{"name": "mine", "objective": "go"}]
        assert names(points=points, control=False) == ["mine"]
        assert names(points=points, grid={"eta": [0.5, 0.9]}, control=False) == ["mine-eta0.5", "mine-eta0.9"]

    def test_values_become_parts_of_a_directory(self):
        grid = {"learning_rate": [1e-5, "1e-4"], "model": ["hub/name", "tiny"]}
        found = names(grid=grid, points=[{"objective": "sft"}])
        assert found[0] == "sft-learning_rate1e-05-modelhub_name"
        assert found[-1] == "sft-learning_rate1e-4-modeltiny"

    @pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", "x" * 130, "mine.permuted", "ü"])
    def test_what_is_no_directory_or_a_controls_is_refused(self, name):
        assert "give" in problems_of(points=[{"name": name, "objective": "sft"}]).lower()

    def test_two_points_with_one_name(self):
        points = [{"name": "a", "objective": "sft"}, {"name": "A", "objective": "go"}]
        assert "2 points have one name, a: give each its own" in problems_of(points=points)

    def test_an_unknown_preset_is_a_problem_of_its_point(self):
        assert "points[0]: lima: no such preset." in problems_of(points=[{"preset": "lima"}])


class TestYardsticks:
    def test_one_eta_where_eta_varies(self):
        base = {"shards": "s", "eval_fraction": 0.1}
        points, notes, _ = make_points(SweepFile(base, [1], **ISSUE))
        assert {point.settings["eval_eta"] for point in points} == {0.7}
        assert "eval_eta 0.7" in notes[-1]

    @pytest.mark.parametrize("more", [{}, {"eval_fraction": 0.1, "eval_eta": 0.9}])
    def test_not_without_held_out_documents_nor_where_it_is_given(self, more):
        points, notes, _ = make_points(SweepFile({"shards": "s", **more}, [1], **ISSUE))
        assert {point.settings.get("eval_eta") for point in points} == {more.get("eval_eta")}
        assert len(notes) == 1


def test_words_of_the_command_line():
    settings = {"shards": ["a", "b"], "packing": True, "eta": 0.5, "model": None, "model_init_kwargs": {"x": 1}}
    expected = ["--shards", "a", "b", "--packing", "true", "--eta", "0.5", "--model_init_kwargs", '{"x": 1}']
    assert words(settings) == expected


def test_effective_settings_are_those_of_train_run():
    found = effective({"preset": "lima-3b-tfidf", "eta": 0.5}, {"objective": "sft"})
    assert (found["objective"], found["eta"]) == ("sft", 0.5)
    assert "lambda_max" not in found  # it belongs to the preset's own objective
    assert effective({"preset": "lima-3b-tfidf"}, {})["lambda_max"] == 0.9
