"""What a report says: never more than the interval, all of it in the JSON, and what is missing is named."""

import json
import re
import time
from dataclasses import replace

import numpy as np
import pytest

from tests.train.comparison.made_runs import (
    PAPER_EFFECTS,
    PAPER_POINTS,
    write_documents,
    write_run,
    write_sweep,
    write_task,
)
from tests.train.comparison.recomputing import recompute
from train.cli import main
from train.comparison.comparison import compare
from train.comparison.findings import _reason, findings
from train.comparison.pairing import lambda_families
from train.comparison.reports.html import write_html
from train.comparison.reports.markdown import write_markdown

SMALL = {
    "sft": {},
    "go-eta0.5": {"objective": "go", "eta": 0.5},
    "go-eta0.5.permuted": {"objective": "go", "eta": 0.5, "permuted": True, "control_of": "go-eta0.5"},
    "go-eta0.9": {"objective": "go", "eta": 0.9},
    "go-eta0.9.permuted": {"objective": "go", "eta": 0.9, "permuted": True, "control_of": "go-eta0.9"},
}
MADE = {"written": "today", "sft-go": "0.1.0"}


def train_compare(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        main(["compare", *map(str, words)])
    printed = capsys.readouterr()
    return stop.value.code, printed.out, printed.err


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    root = tmp_path_factory.mktemp("sweep") / "small"
    return write_sweep(root, SMALL, effects={"go-eta0.9": 0.1}, seed_sd=0.005, num_items=40)


@pytest.fixture(scope="module")
def report(sweep, tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    files = f"--html {out}/r.html --md {out}/r.md --json {out}/r.json"
    with pytest.raises(SystemExit) as stop:
        main(f"compare {sweep} --baseline objective=sft --columns loss,paper/average {files}".split())
    assert stop.value.code == 0
    return out


def test_the_json_is_enough_to_compute_the_statistics_again(report):
    families = recompute(json.loads((report / "r.json").read_text()))
    assert families == {"baseline", "control", "yardstick"}


def test_the_item_interval_is_a_bootstrap_over_documents_with_t_over_seeds(sweep):
    """The whole path from files, computed again slowly: a ratio of sums, documents drawn for all seeds at once."""
    import pyarrow.parquet as pq

    made = compare([sweep], columns=["loss"])
    found = made.difference("baseline", "go-eta0.9", made.headline).estimate
    tables = {n: [pq.read_table(sweep / f"runs/{n}/{s}/eval_documents.parquet") for s in range(1, 6)] for n in SMALL}
    tokens = tables["sft"][0]["tokens"].to_numpy()
    change = np.array(
        [a["loss"].to_numpy() - b["loss"].to_numpy() for a, b in zip(tables["go-eta0.9"], tables["sft"], strict=True)]
    )
    by_seed = change.sum(1) / tokens.sum()
    assert found.differences == pytest.approx(by_seed)
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(tokens), size=(4000, len(tokens)))
    items = change.mean(0)[drawn].sum(1) / tokens[drawn].sum(1)
    draws = items + rng.standard_t(4, 4000) * found.se_seeds
    assert (found.low, found.high) == pytest.approx(
        np.quantile(draws, [0.025, 0.975]), abs=0.1 * (found.high - found.low)
    )


def test_the_finding_says_what_holds(report, sweep):
    said = findings(compare([sweep], columns=["loss"]))
    assert said[0].startswith("go-eta0.9 is better than sft in held-out loss, by 0.")
    assert re.search(r"95 % interval −0\.\d+ to −0\.\d+, 5 seeds and 200 items, corrected p", said[0])
    assert "which tokens are important matters there" in said[1]
    start = said[0][: said[0].index("corrected p")]  # p is corrected over fewer columns here
    assert (report / "r.md").read_text().splitlines()[2].startswith(start)


def test_nothing_is_found_where_nothing_is(tmp_path):
    made = compare([write_sweep(tmp_path / "null", SMALL, seed_sd=0.02)])
    assert not any(d.holds for d in made.family("baseline"))
    said = " ".join(findings(made))
    assert "No difference from sft in held-out loss holds" in said
    assert "would have been found with a chance of about 80 %" in said
    assert "better than sft" not in said


def test_on_a_narrow_terminal_a_point_is_a_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    name, go = "go-tfidf-eta0.5", {"objective": "go", "eta": 0.5}
    points = {"sft": {}, name: go, f"{name}.permuted": {**go, "permuted": True, "control_of": name}}
    code, out, _ = train_compare(capsys, write_sweep(tmp_path / "long", points), "--draws", 100)
    assert code == 0
    rows = [line for line in out.splitlines() if "±" in line]
    assert [row.split()[0] for row in rows] == list(points)
    assert all(len(row) <= 80 for row in rows)
    assert rows[1].split()[-1].replace(".", "").strip("<").isdecimal()  # up to its p


def test_two_plain_runs_the_first_is_the_baseline(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name, shift in (("one", 0.0), ("two", 0.2)):
        tokens = np.arange(5, 65)
        write_documents(write_run(tmp_path / name, 1), (2 - shift + 0.1 * rng.random(60)) * tokens, tokens)
    code, out, _ = train_compare(capsys, tmp_path / "one", tmp_path / "two")
    assert code == 0
    assert "In held-out loss, two is at −0." in out.replace("\n", " ")
    assert "With one seed the interval is for other items" in " ".join(out.split())


def test_two_runs_of_other_seeds_are_compared_and_it_is_said(tmp_path):
    tokens = np.arange(5, 65)
    for name, seed, objective in (("one", 1, "sft"), ("two", 2, "go")):
        write_documents(write_run(tmp_path / name, seed, objective), 2.0 * tokens, tokens)
    made = compare([tmp_path / "one", tmp_path / "two"])
    (difference,) = made.family("baseline")
    assert "seeds 2 and 1" in difference.note
    assert "Seeds 2 and 1" in write_markdown(made, ["train"], MADE)


def test_identical_runs_differ_by_nothing(tmp_path):
    tokens = np.arange(5, 65)
    for name in ("one", "two"):
        write_documents(write_run(tmp_path / name, 1), 2.0 * tokens, tokens)
    made = compare([tmp_path])
    (difference,) = made.family("baseline")
    e = difference.estimate
    assert (e.difference, e.low, e.high, e.p, difference.p_holm, difference.holds) == (0.0, 0.0, 0.0, 1.0, 1.0, False)
    assert findings(made) == ["There is no difference from one in held-out loss: the runs gave the same, item by item."]


def test_nan_is_shown_and_never_averaged(tmp_path):
    root = write_sweep(tmp_path / "nan", SMALL, effects={"go-eta0.9": 0.1}, seed_sd=0.005)
    place = root / "runs" / "go-eta0.9" / "3"
    tokens = np.random.default_rng(0).integers(5, 300, 200)
    import pyarrow.parquet as pq

    table = pq.read_table(place / "eval_documents.parquet")
    tokens, loss = table["tokens"].to_numpy(), table["loss"].to_numpy().copy()
    loss[5] = np.nan
    write_documents(place, loss, tokens, {"tfidf": (tokens // 3, loss / 3)})
    made = compare([root])
    point = next(p for p in made.points if p.name == "go-eta0.9")
    assert made.summary(point, made.headline).mean is None
    assert made.difference("baseline", "go-eta0.9", made.headline).estimate.difference is None
    assert made.difference("baseline", "go-eta0.5", made.headline).p_holm is not None
    assert "go-eta0.9, seed 3" in findings(made)[-1]
    assert "NaN in 1 of 5" in write_html(made, ["train"], MADE)
    from train.comparison.reports.content import report_content

    row = next(v for v in report_content(made, [], MADE)["values"] if v["point"] == "go-eta0.9")
    assert row["non_finite_seeds"] == [3]
    assert row["per_seed"]["3"] is None
    assert row["mean"] is None
    json.dumps(report_content(made, [], MADE), allow_nan=False)


def test_a_curve_with_nan_ends_and_says_so(tmp_path):
    for seed, bad in ((1, None), (2, 11)):
        run = write_run(tmp_path / str(seed), seed, "go", nan_from=bad)
        write_documents(run, np.ones(30), np.ones(30))
    made = compare([tmp_path])
    (curves,) = made.curves.values()
    important = next(line for line in curves.lines if line.label == "important")
    assert None not in important.mean[:10]
    assert set(important.mean[10:]) == {None}
    assert curves.num_non_finite == 1
    assert "NaN in 1 of 2 runs" in write_html(made, ["train"], MADE)


def test_curves_are_mean_and_sd_over_seeds(sweep):
    made = compare([sweep], columns=["loss"])
    histories = [
        [
            json.loads(line)["loss_important"]
            for line in (sweep / f"runs/sft/{s}/metrics.jsonl").read_text().splitlines()
        ]
        for s in range(1, 6)
    ]
    line = made.curves["sft"].lines[0]
    assert line.label == "important"
    assert line.mean == pytest.approx(np.mean(histories, 0))
    assert line.sd == pytest.approx(np.std(histories, 0, ddof=1))


def test_only_benchmarks_or_both_or_documents_alone(tmp_path):
    rng = np.random.default_rng(0)
    for name, objective in (("a", "sft"), ("b", "go")):
        for seed in (1, 2):
            write_task(write_run(tmp_path / f"{name}{seed}", seed, objective), "arc", rng.integers(2, size=50))
    made = compare([tmp_path])
    assert [column.key for column in made.columns] == ["arc"]
    assert "%" in write_html(made, ["train"], MADE)
    for name in ("a1", "a2", "b1", "b2"):
        write_documents(tmp_path / name, rng.random(30), np.ones(30))
    both = compare([tmp_path])
    assert [column.key for column in both.columns] == ["loss", "arc"]
    assert compare([tmp_path], columns=["arc"]).headline.key == "arc"


def test_lambda_is_compared_where_nothing_else_differs(tmp_path):
    points = {
        "sft": {},
        "static": {"objective": "go"},
        "decaying": {"objective": "go", "lambda_min": 0.05},
        "other-eta": {"objective": "go", "eta": 0.9},
    }
    made = compare([write_sweep(tmp_path / "s", points, seeds=(1, 2, 3))])
    assert [[p.name for p in family] for family in lambda_families(made.points)] == [["static", "decaying"]]
    (difference,) = made.family("lambda")
    assert (difference.point, difference.against, difference.family_size) == ("decaying", "static", 1)
    assert "0.9 → 0.05" in write_markdown(made, ["train"], MADE)


def test_cost_counts_devices_seconds_and_redone_steps(tmp_path):
    for seed in (1, 2):
        run = write_run(tmp_path / str(seed), seed, steps=72)
        content = json.loads((run / "run.json").read_text())
        content["redone"]["num_redone_steps"], content["run"]["workers"] = seed, 2
        (run / "run.json").write_text(json.dumps(content))
        write_documents(run, np.ones(30), np.ones(30))
    (cost,) = compare([tmp_path]).costs
    assert cost.device_hours == pytest.approx(2 * 36 * 2 / 3600)
    assert (cost.redone_steps, cost.run_s, cost.tokens_per_s, cost.is_gpu) == (3, 36, 2015, False)


def test_failed_runs_are_in_the_report(tmp_path):
    root = write_sweep(tmp_path / "s", {"sft": {}, "go": {"objective": "go"}}, seeds=(1, 2, 3))
    place = root / "runs" / "go" / "2"
    (place / "run.json").unlink()
    (place / "failed.json").write_text(json.dumps({"status": 1, "tail": ["CUDA <out> of memory"], "at": "now"}))
    made = compare([root])
    page = write_html(made, ["train"], MADE)
    assert "CUDA &lt;out&gt; of memory" in page
    assert findings(made)[-1] == "1 run of the sweep is not in it (1 failed)."
    assert made.family("baseline")[0].note == "1 run without a partner left out"


def test_names_from_outside_cannot_write_html(tmp_path):
    write_documents(write_run(tmp_path / "a", 1, point="<script>x</script>"), np.ones(9), np.ones(9))
    write_documents(write_run(tmp_path / "b", 1, "go", point='"><img src=x>'), np.ones(9), np.ones(9))
    page = write_html(compare([tmp_path], ["<script>x</script>"]), ["train"], MADE)
    assert "<script>x" not in page
    assert "<img" not in page


def test_the_page_needs_nothing_from_elsewhere(report):
    page = (report / "r.html").read_text()
    assert not re.search(r"""(?:src|href)=["'](?!data:)|@import|url\(|https?://""", page)


def test_a_hundred_runs_are_small_and_soon_done(tmp_path):
    points = {f"go-{i}": {"objective": "go", "learning_rate": 1e-5 * (i + 1)} for i in range(19)}
    root = write_sweep(tmp_path / "many", {"sft": {}, **points}, num_documents=500, num_items=100, steps=300)
    start = time.monotonic()
    made = compare([root])
    page = write_html(made, ["train"], MADE)
    assert sum(len(point.runs) for point in made.points) == 100
    assert len(page.encode()) < 5_000_000
    assert time.monotonic() - start < 120


def test_the_picture_shows_every_difference(sweep, tmp_path, capsys):
    words = [sweep, "--baseline", "objective=sft", "--columns", "loss,paper/average", "--md", tmp_path / "R.md"]
    for name in ("a.svg", "again.svg", "a.PNG", "a.pdf"):
        (tmp_path / "pictures").mkdir(exist_ok=True)
        code, out, _ = train_compare(
            capsys, *words, "--json", tmp_path / "r.json", "--picture", tmp_path / "pictures" / name
        )
        assert code == 0
        assert f"written: {tmp_path}/pictures/{name}" in out
    assert "![Differences from sft with 95 % intervals](pictures/a.pdf)" in (tmp_path / "R.md").read_text()
    assert (tmp_path / "pictures" / "a.PNG").read_bytes().startswith(b"\x89PNG")
    drawn = (tmp_path / "pictures" / "a.svg").read_text()
    assert drawn == (tmp_path / "pictures" / "again.svg").read_text()
    rows = [r for r in json.loads((tmp_path / "r.json").read_text())["comparisons"] if r["family"] == "baseline"]
    lead = [r for r in rows if r["column"] == rows[0]["column"]]
    assert len(lead) == len(SMALL) - 1
    places = []
    for row in lead:
        mark = re.search(
            rf'<g id="[^"]*:{re.escape(row["point"])}">.*?<use [^>]*x="([\d.]+)" y="([\d.]+)"', drawn, re.S
        )
        places.append((float(mark[1]), float(mark[2])))
    across, down = np.array(places).T
    assert (np.diff(down) > 0).all()  # the rows of the table, in its order
    slope = np.diff(across[:2]) / np.diff([r["difference"] for r in lead[:2]])
    expected = across[0] + slope * (np.array([r["difference"] for r in lead]) - lead[0]["difference"])
    assert across == pytest.approx(expected, abs=0.01)  # marks lie on one scale


def test_the_command_refuses_what_it_cannot_do(tmp_path, capsys):
    write_documents(write_run(tmp_path / "a", 1), np.ones(9), np.ones(9))
    code, _, err = train_compare(
        capsys,
        tmp_path,
        "--html",
        tmp_path,
        "--json",
        tmp_path / "no" / "r.json",
        "--draws",
        3,
        "--picture",
        tmp_path / "r.jpg",
    )
    assert code == 1
    assert "4 problems" in err
    assert "expected a name that ends in .png, .svg, .pdf" in err
    code, _, err = train_compare(capsys, tmp_path, "--baseline", "go")
    assert code == 1
    assert "--baseline go" in err


def test_the_story_of_the_paper(tmp_path):
    """Every figure and table that the paper has, from one sweep of its shape."""
    made = compare(
        [write_sweep(tmp_path / "paper", PAPER_POINTS, effects=PAPER_EFFECTS, num_items=30, seeds=(1, 2, 3))]
    )
    page = write_html(made, ["train", "compare"], MADE)
    for words in (
        "Differences from the baseline",
        "Which eta",
        "Training loss by group",
        "Constant or decaying lambda",
    ):
        assert f"<h2>{words}</h2>" in page
    assert page.count('class="panel"') == 4 + len(PAPER_POINTS)
    assert page.count('id="main"') == 1


def test_switches_are_counted_where_a_run_does_not_say_them(tmp_path):
    run = write_run(tmp_path / "a", 1, "go", curve=(0.6, 0.6))
    write_documents(run, np.ones(30), np.ones(30))
    content = json.loads((run / "run.json").read_text())
    said = content.pop("worst_group_switches")
    (run / "run.json").write_text(json.dumps(content))
    (curves,) = compare([tmp_path]).curves.values()
    assert curves.switches == [{"count": said["count"], "share_of_steps": said["count"] / 19}]
    assert said["count"] > 0


def test_with_one_seed_nothing_is_said_of_seeds(tmp_path):
    tokens = np.arange(5, 65)
    for name, objective, loss in (("one", "sft", 2.0), ("two", "go", 1.5)):
        write_documents(write_run(tmp_path / name, 1, objective), loss * tokens + np.arange(60) % 3, tokens)
    made = compare([tmp_path])
    page = write_html(made, ["train"], MADE)
    assert not any(d.holds for d in made.differences)
    assert "intervals over items" in page
    assert "over seeds and items" not in page.split("<h2>How the numbers were made")[0]
    assert "What could have been seen" not in page
    assert "is better than" not in " ".join(findings(made))


def test_what_is_worse_is_called_worse(tmp_path):
    made = compare([write_sweep(tmp_path / "worse", SMALL, effects={"go-eta0.9": -0.1}, seed_sd=0.005)])
    said = findings(made)
    assert (
        "No point is shown to be better than sft in held-out loss; 1 of 2 is shown to be worse, go-eta0.9 by" in said[0]
    )
    assert said[1].startswith("0 of 2 points with groups are better and 1 is worse than the permuted control")


def test_where_the_baseline_is_nan_that_is_the_reason(tmp_path):
    root = write_sweep(tmp_path / "nan", SMALL)
    tokens = np.full(200, 9)
    write_documents(root / "runs" / "sft" / "2", np.where(np.arange(200) == 7, np.nan, 9.0), tokens)
    for place in root.glob("runs/*/*"):  # all of them over the same documents
        if place.parts[-2:] != ("sft", "2"):
            write_documents(place, 9.0 + 0.01 * np.arange(200), tokens)
    said = findings(compare([root]))
    assert said[0].startswith(
        "sft has NaN in 1 of 5 in held-out loss; every point has NaN there, or stands against NaN"
    )
    assert "seed in common" not in " ".join(said)


def test_why_a_difference_does_not_hold_is_said_by_its_own_numbers(tmp_path):
    difference = compare([write_sweep(tmp_path / "x", SMALL)]).family("baseline")[0]

    def why(p, p_holm, low=0.1):
        e = replace(difference.estimate, low=low, high=0.3, p=p)
        return _reason(replace(difference, estimate=e, p_holm=p_holm, family_size=7))

    assert "not corrected for the table's 7 comparisons" in why(0.02, 0.14)
    assert "the permutation test does not agree (p = 0.060)" in why(0.06, 0.06)
    assert why(0.02, 0.14, low=-0.1) == "The interval includes 0."
