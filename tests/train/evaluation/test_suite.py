"""Suites: the paper's eight columns, files of one's own, and what is refused."""

import math

import pytest

from common.errors import UserError
from train.evaluation.suite import Asked, load_suite

PAPER = ["MMLU 0-shot", "MMLU 5-shot", "MathQA", "ARC-C", "OpenBookQA", "HellaSwag", "TruthfulQA", "IFEval"]


class TestPaper:
    def test_columns_and_what_they_are_means_of(self):
        suite = load_suite("paper")
        assert list(suite.columns) == PAPER
        assert [asked.shots for asked in suite.asked()] == [0, 5, *[0] * 8]
        assert len(suite.columns["TruthfulQA"]) == 6
        assert len(suite.columns["IFEval"]) == 4
        assert {len(suite.columns[name]) for name in PAPER[:6]} == {1}

    def test_a_column_is_the_mean_of_its_figures_each_with_the_same_weight(self):
        suite = load_suite("paper")
        gen, one, two = (Asked(f"truthfulqa_{name}", 0) for name in ("gen", "mc1", "mc2"))
        values = suite.values(
            {
                gen: {"bleu_acc": 0.1, "rouge1_acc": 0.2, "rouge2_acc": 0.3, "rougeL_acc": 0.4, "bleu_max": 9.0},
                one: {"acc": 0.5},
                two: {"acc": 0.6},
                Asked("mmlu", 5): {"acc": math.nan},
            }
        )
        assert values["TruthfulQA"] == pytest.approx(2.1 / 6)
        assert math.isnan(values["MMLU 5-shot"])
        assert values["MMLU 0-shot"] is None

    def test_its_headlines(self):
        suite = load_suite("paper")
        assert suite.headline(Asked("arc_challenge", 0)) == "acc_norm"
        assert suite.headline(Asked("mmlu", 5)) == "acc"


class TestFile:
    def test_reads(self, tmp_path):
        path = tmp_path / "mine.yaml"
        path.write_text(
            "columns:\n  A: {task: arc_challenge, metrics: [acc, acc_norm]}\n"
            "  B:\n    - {task: arc_challenge, metrics: [acc]}\n    - {task: x, shots: 3, metrics: [m]}\n"
        )
        suite = load_suite(str(path))
        assert suite.name == "mine"
        assert suite.asked() == [Asked("arc_challenge"), Asked("x", 3)]
        assert suite.values({Asked("arc_challenge"): {"acc": 0.5, "acc_norm": 0.25}}) == {"A": 0.375, "B": None}

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("", "expected one key, columns"),
            ("columns: {}", "at least one column"),
            ("columns: [a]", "expected one key"),
            ("column: {A: {task: x, metrics: [m]}}", "expected one key"),
            ("columns: {A: {task: x, metrics: [m]}}\nname: y", "expected one key"),
            ("columns: {A: {task: x, metric: [m]}}", "expected task, metrics"),
            ("columns: {A: {task: x, metrics: [m], shot: 5}}", "unknown: shot"),
            ("columns: {A: {task: 3, metrics: [m]}}", "name of a task"),
            ("columns: {A: {task: x, metrics: []}}", "list of the task's metrics"),
            ("columns: {A: {task: x, metrics: m}}", "list of the task's metrics"),
            ("columns: {A: {task: x, metrics: [m], shots: -1}}", "at least 0"),
            ("columns: {A: {task: x, metrics: [m], shots: true}}", "at least 0"),
            ("columns:\n  A: {task: x, metrics: [m]}\n  A: {task: y, metrics: [m]}", "'A' stands there twice"),
            ("columns: {A: [", "expected YAML"),
        ],
    )
    def test_what_is_not_understood_is_refused(self, tmp_path, text, expected):
        path = tmp_path / "bad.yaml"
        path.write_text(text)
        with pytest.raises(UserError) as error:
            load_suite(str(path))
        assert expected in str(error.value)
        assert str(path) in str(error.value)

    def test_everything_that_is_wrong_comes_together(self, tmp_path):
        path = tmp_path / "bad.yaml"
        path.write_text("columns:\n  A: {task: x}\n  B: {task: y, metrics: [m], shots: two}\n")
        with pytest.raises(UserError) as error:
            load_suite(str(path))
        assert "'A'" in str(error.value)
        assert "'B'" in str(error.value)

    def test_an_unknown_suite_and_an_unknown_column(self):
        with pytest.raises(UserError, match=r"--suite papr: .*Did you mean paper"):
            load_suite("papr")
        with pytest.raises(UserError, match="--columns ARC: suite paper has no such column"):
            load_suite("paper").only(["ARC", "HellaSwag"])
        assert list(load_suite("paper").only(["HellaSwag", "ARC-C"]).columns) == ["ARC-C", "HellaSwag"]
