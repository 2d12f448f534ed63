"""Runs on disk become points; what was not asked the same is refused with what differs."""

import json
from pathlib import Path

import numpy as np
import pytest

from common.errors import UserError
from tests.train.comparison.made_runs import write_documents, write_run, write_suite, write_sweep, write_task
from train.comparison.comparison import compare
from train.comparison.reading.points import choose_baseline, make_points
from train.comparison.reading.runs import find_runs

TOKENS = np.arange(5, 45)


def points_of(*directories):
    return make_points(find_runs(directories).runs)


def held_out(directory, losses=None, **changes):
    losses = np.linspace(1.0, 2.0, len(TOKENS)) * TOKENS if losses is None else losses
    write_documents(directory, losses, TOKENS[: len(losses)], {"tfidf": (TOKENS // 3, losses / 4)}, **changes)
    return directory


def test_runs_become_points_by_their_settings(tmp_path):
    for seed in (1, 2):
        write_run(tmp_path / f"a{seed}", seed)
        write_run(tmp_path / f"b{seed}", seed, "go", eta=0.7)
        write_run(tmp_path / f"c{seed}", seed, "go", eta=0.9)
        write_run(tmp_path / f"d{seed}", seed, "go", eta=0.9, permuted=True)
    points = {point.name: point for point in points_of(tmp_path)}
    assert list(points) == [
        "sft",
        "go-tfidf-eta0.7-permute_groupsfalse",
        "go-tfidf-eta0.9-permute_groupsfalse",
        "go-tfidf-eta0.9-permute_groupstrue",
    ]
    assert all([run.seed for run in point.runs] == [1, 2] for point in points.values())
    assert points["go-tfidf-eta0.9-permute_groupstrue"].control_of == "go-tfidf-eta0.9-permute_groupsfalse"
    assert points["go-tfidf-eta0.7-permute_groupsfalse"].control_of is None


def test_a_setting_that_the_objective_does_not_read_makes_no_point(tmp_path):
    write_run(tmp_path / "a", 1, eta=0.5, grouper="tfidf")
    write_run(tmp_path / "b", 2, eta=0.9, grouper="frequency")
    assert [point.name for point in points_of(tmp_path)] == ["sft"]
    write_run(tmp_path / "c", 1, "dft", eta=0.5, grouper="tfidf")  # as every objective says it of itself
    write_run(tmp_path / "d", 2, "dft", eta=0.9, grouper="frequency")
    assert [point.name for point in points_of(tmp_path)] == ["sft", "dft"]


def test_two_runs_of_one_point_and_seed_are_told_apart_by_their_directories(tmp_path):
    write_run(tmp_path / "one", 1)
    write_run(tmp_path / "other", 1)
    assert [point.name for point in points_of(tmp_path / "one", tmp_path / "other")] == ["one", "other"]


def test_a_directory_that_is_given_twice_counts_once(tmp_path):
    write_run(tmp_path / "one", 1)
    assert len(find_runs([tmp_path, tmp_path / "one"]).runs) == 1


def test_a_sweep_says_points_controls_and_what_is_left(tmp_path):
    points = {
        "sft": {},
        "go": {"objective": "go"},
        "go.permuted": {"objective": "go", "permuted": True, "control_of": "go"},
    }
    sweep = write_sweep(tmp_path / "sweep", points, seeds=(1, 2))
    run = sweep / "runs" / "go" / "2"
    (run / "run.json").unlink()
    (run / "failed.json").write_text(json.dumps({"status": 1, "tail": ["out of memory"], "at": "now"}))
    (sweep / "runs" / "sft" / "2" / "run.json").unlink()
    found = find_runs([sweep])
    assert [(left.name, left.reason) for left in found.unfinished] == [("sft/2", "unfinished"), ("go/2", "failed")]
    assert found.unfinished[1].tail == ("out of memory",)
    assert [point.control_of for point in make_points(found.runs)] == [None, None, "go"]


@pytest.mark.parametrize(
    ("wish", "name"),
    [
        ([], "sft"),
        (["objective=sft"], "sft"),
        (["go-0.9"], "go-0.9"),
        (["objective=go,eta=0.90"], "go-0.9"),
        (["objective=go", "eta=0.7"], "go-0.7"),
    ],
)
def test_the_baseline_is_named_by_name_or_settings(tmp_path, wish, name):
    for point, settings in {
        "sft": {},
        "go-0.7": {"objective": "go", "eta": 0.7},
        "go-0.9": {"objective": "go", "eta": 0.9},
    }.items():
        write_run(tmp_path / point, 1, point=point, **settings)
    points = points_of(tmp_path)
    assert choose_baseline(points, wish).name == name


@pytest.mark.parametrize(
    ("wish", "text"),
    [
        (["objective=go"], "found go-0.7, go-0.9"),
        (["objective=dpo"], "found none"),
        (["objectiv=sft"], "Did you mean objective?"),
        (["go-0.8"], "Did you mean go-0"),
    ],
)
def test_a_baseline_that_is_not_one_point_is_refused(tmp_path, wish, text):
    for point, settings in {
        "sft": {},
        "go-0.7": {"objective": "go", "eta": 0.7},
        "go-0.9": {"objective": "go", "eta": 0.9},
    }.items():
        write_run(tmp_path / point, 1, point=point, **settings)
    with pytest.raises(UserError, match="--baseline") as refused:
        choose_baseline(points_of(tmp_path), wish)
    assert text in str(refused.value)


def test_other_shards_are_refused(tmp_path):
    held_out(write_run(tmp_path / "a", 1))
    held_out(write_run(tmp_path / "b", 1, "go", manifest="f" * 64))
    with pytest.raises(UserError, match=r"shards \(manifest hashes\).*4d2c80ff50f7 in .*a; ffffffffffff in .*b"):
        compare([tmp_path])


def test_other_held_out_documents_are_refused(tmp_path):
    held_out(write_run(tmp_path / "a", 1))
    held_out(write_run(tmp_path / "b", 1, "go", eval_hash="f" * 64), eval_hash="f" * 64)
    with pytest.raises(UserError, match=r"held-out documents \(eval_hash.*eeeeeeeeeeee.*ffffffffffff"):
        compare([tmp_path])


def test_documents_that_differ_under_one_hash_are_refused(tmp_path):
    held_out(write_run(tmp_path / "a", 1))
    held_out(write_run(tmp_path / "b", 1, "go"), ids=[f"x{i}" for i in range(40)])
    with pytest.raises(UserError, match="same documents in the same order"):
        compare([tmp_path])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"version": 2.0}, "version 2.0"),
        ({"num_fewshot": 5}, "num_fewshot 5"),
        ({"limit": 50}, "limit 50"),
        ({"items": [{"id": "other", "group": None, "acc": 1.0}]}, "1 items"),
    ],
)
def test_a_task_that_was_asked_otherwise_is_refused(tmp_path, change, text):
    write_task(write_run(tmp_path / "a", 1), "arc", np.ones(20))
    write_task(write_run(tmp_path / "b", 1, "go"), "arc", np.ones(20), **change)
    with pytest.raises(UserError, match=r"task arc: expected the same") as refused:
        compare([tmp_path])
    assert text in str(refused.value)


def test_suites_of_other_columns_are_refused(tmp_path):
    write_suite(write_run(tmp_path / "a", 1), {"ARC-C": 0.5, "IFEval": 0.3})
    write_suite(write_run(tmp_path / "b", 1, "go"), {"ARC-C": 0.5})
    with pytest.raises(UserError, match=r"suite paper \(columns\)"):
        compare([tmp_path])


def test_all_differences_come_together(tmp_path):
    write_task(held_out(write_run(tmp_path / "a", 1)), "arc", np.ones(20))
    write_task(held_out(write_run(tmp_path / "b", 1, "go", manifest="f" * 64)), "arc", np.ones(20), limit=20)
    with pytest.raises(UserError, match="2 problems"):
        compare([tmp_path])


def test_one_name_for_other_settings_is_refused(tmp_path):
    write_run(tmp_path / "a", 1, point="mine")
    write_run(tmp_path / "b", 2, point="mine", learning_rate=3e-5)
    with pytest.raises(UserError, match=r"point mine: .*learning_rate: 1e-05 and 3e-05|3e-05 and 1e-05"):
        points_of(tmp_path)


def test_one_seed_twice_is_refused(tmp_path):
    write_run(tmp_path / "a", 1, point="mine")
    write_run(tmp_path / "b", 1, point="mine")
    with pytest.raises(UserError, match="point mine: seed 1 is there twice"):
        points_of(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PAR1 and no more", b"{}"])
def test_damaged_files_are_named(tmp_path, content):
    run = held_out(write_run(tmp_path / "a", 1))
    (run / "eval_documents.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"a/eval_documents.parquet: expected"):
        compare([tmp_path])


@pytest.mark.parametrize("name", ["run.json", "evaluation/arc.json", "metrics.jsonl"])
def test_files_that_are_no_json_are_named(tmp_path, name):
    run = held_out(write_run(tmp_path / "a", 1))
    write_task(run, "arc", np.ones(20))
    (run / name).write_text('{"half":')
    with pytest.raises(UserError, match=f"{name}.*expected"):
        compare([tmp_path])


def test_nothing_to_compare_is_said(tmp_path):
    with pytest.raises(UserError, match="found none"):
        compare([tmp_path])
    with pytest.raises(UserError, match="expected the directory of a sweep or a run"):
        compare([tmp_path / "gone"])
    write_run(tmp_path / "a", 1)
    with pytest.raises(UserError, match="found neither"):
        compare([tmp_path])
    held_out(tmp_path / "a")
    with pytest.raises(UserError, match=r"--columns los: .*Did you mean loss\?"):
        compare([tmp_path], columns=["los"])


def test_values_are_what_the_files_say(tmp_path):
    rng = np.random.default_rng(0)
    loss, important = rng.random(40) * TOKENS, TOKENS // 3
    part = rng.random(40) * important
    write_documents(write_run(tmp_path / "a", 1), loss, TOKENS, {"tfidf": (important, part)})
    made = compare([tmp_path])
    values = {column.key: column.measures[tmp_path / "a"].value for column in made.columns}
    assert values["loss"] == pytest.approx(loss.sum() / TOKENS.sum())
    by_group = part.sum() / important.sum(), (loss - part).sum() / (TOKENS - important).sum()
    assert values["loss/tfidf, eta 0.7/important"] == pytest.approx(by_group[0])
    assert values["loss/tfidf, eta 0.7/unimportant"] == pytest.approx(by_group[1])
    assert values["loss/tfidf, eta 0.7/worst"] == pytest.approx(max(by_group))


def test_documents_of_other_shards_are_columns_of_their_own(tmp_path):
    rng = np.random.default_rng(0)
    loss, important = rng.random(40) * TOKENS, TOKENS // 3
    for name, seed in (("a", 1), ("b", 2)):
        write_documents(held_out(write_run(tmp_path / name, seed)), loss, TOKENS, in_set="lima", eval_hash="f" * 64)
        held_out(write_run(tmp_path / f"go-{name}", seed, "go"))
        write_documents(
            tmp_path / f"go-{name}",
            loss + 2 * TOKENS,
            TOKENS,
            {"tfidf": (important, important)},
            "f" * 64,
            in_set="lima",
        )
    made = compare([tmp_path])
    assert [column.key for column in made.main_columns] == ["loss", "loss@lima"]
    assert made.headline.key == "loss"
    lima = made.main_columns[1]
    assert lima.title == "Held-out loss, lima"
    assert lima.measures[tmp_path / "a"].value == pytest.approx(loss.sum() / TOKENS.sum())
    differences = {d.column.key: d.estimate.difference for d in made.family("baseline")}
    assert differences["loss"] == pytest.approx(0.0, abs=1e-12)
    assert differences["loss@lima"] == pytest.approx(2.0)
    assert "loss@lima/tfidf, eta 0.7/important" in [column.key for column in made.yardsticks]
    assert made.common.other_sets == {"lima": 40}
    write_documents(tmp_path / "b", loss, TOKENS, in_set="lima", eval_hash="1" * 64)
    with pytest.raises(UserError, match="held-out documents of lima: expected one set, found 2"):
        compare([tmp_path])


def test_other_yardsticks_are_other_columns(tmp_path):
    held_out(write_run(tmp_path / "a", 1))
    held_out(write_run(tmp_path / "b", 1, "go", eta=0.9), eta=0.9)
    made = compare([tmp_path])
    keys = [column.key for column in made.yardsticks]
    assert "loss/tfidf, eta 0.7/important" in keys
    assert "loss/tfidf, eta 0.9/important" in keys
    assert made.family("yardstick") == []
    assert len(made.family("baseline")) == 1


def test_a_suite_is_the_mean_of_its_columns_and_they_of_their_metrics(tmp_path):
    rng = np.random.default_rng(1)
    for seed in (1, 2):
        for name, settings in (("sft", {}), ("go", {"objective": "go"})):
            run = write_run(tmp_path / name / str(seed), seed, point=name, **settings)
            one, two = rng.integers(2, size=(2, 30)).astype(float)
            write_task(run, "mc1", one, suite="paper", data="truthful")
            write_task(run, "mc2", two, suite="paper", data="truthful")
            write_task(run, "arc", one, suite="paper")
            columns = {"TruthfulQA": (one.mean() + two.mean()) / 2, "ARC-C": one.mean()}
            parts = {"TruthfulQA": [("mc1", "acc"), ("mc2", "acc")], "ARC-C": [("arc", "acc")]}
            made_of = {c: [{"file": f"{t}.json", "metric": m} for t, m in p] for c, p in parts.items()}
            write_suite(run, columns, made_of)
    made = compare([tmp_path])
    assert [column.title for column in made.columns] == ["Average", "TruthfulQA", "ARC-C"]
    # mc1 and mc2 ask the same questions, which are drawn together
    assert [column.num_items for column in made.columns] == [60, 30, 30]
    average = made.columns[0].measures[tmp_path / "go" / "1"]
    assert average.value == pytest.approx(
        np.mean([column.measures[tmp_path / "go" / "1"].value for column in made.columns[1:]])
    )
    assert sum(part.contributions.sum() for part in average.parts) == pytest.approx(average.value)


def test_a_metric_that_counts_otherwise_keeps_its_value_and_its_items(tmp_path):
    run = write_run(tmp_path / "a", 1)
    write_task(run, "ifeval", np.array([1.0, 0.5, 0.0, 1.0]), metrics={"acc": 0.6})  # the items' mean is 0.625
    write_task(run, "corpus", np.array([1.0, 0.5, 0.0, 1.0]), metrics={"acc": 31.5}, task="corpus")
    made = {column.key: column.measures[run] for column in compare([tmp_path]).columns}
    assert made["ifeval"].value == 0.6
    assert made["ifeval"].parts[0].contributions.sum() == pytest.approx(0.6)
    assert made["ifeval"].parts[0].influences == pytest.approx((np.array([1.0, 0.5, 0.0, 1.0]) - 0.625) / 4)
    assert (made["corpus"].value, made["corpus"].parts) == (31.5, ())


def test_an_evaluated_checkpoint_stands_beside_the_runs(tmp_path):
    for seed in (1, 2, 3):
        held_out(write_run(tmp_path / "sft" / str(seed), seed))
    untrained = tmp_path / "untrained"
    untrained.mkdir()
    held_out(untrained, losses=np.full(40, 8.0) * TOKENS)
    made = compare([tmp_path / "sft", untrained])
    assert [point.name for point in made.points] == ["sft", "untrained"]
    assert [point.is_reference for point in made.points] == [False, True]
    assert [cost.point for cost in made.costs] == ["sft"]  # what it took to train it is not asked
    (difference,) = made.family("baseline")
    assert difference.seeds == (1, 2, 3)
    assert difference.estimate.difference == pytest.approx(8.0 - made.summary(made.baseline, made.headline).mean)


def test_relative_and_absolute_are_one(tmp_path, monkeypatch):
    held_out(write_run(tmp_path / "a", 1))
    monkeypatch.chdir(tmp_path)
    assert len(find_runs([Path("a"), tmp_path / "a"]).runs) == 1
