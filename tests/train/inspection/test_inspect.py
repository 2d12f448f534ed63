"""`train inspect` over real short runs: its numbers, its page, and what it says when shards are gone or changed."""

import json
import re
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from common.shards import ShardDirectory
from common.thresholds import important_tokens
from tests.services.browser import all_of, browser, complaints, one, requests_made, set_eta, until
from tests.train.conftest import write_shards
from train.cli import main

WORDS = ["the cat", " sat on", " the mat", " and then", " the dog", " ran away", " <b>&", "\n\n"]


def documents_with_text(tokenizer, num=20):
    """Return documents whose tokens spell their text, the first part not supervised."""
    rng, made = np.random.default_rng(5), []
    for _ in range(num):
        prompt, response = ("".join(rng.choice(WORDS, count)) for count in (3, 8))
        parts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, response)]
        ids = [*parts[0], *parts[1], tokenizer.eos_token_id]
        supervised = [False] * len(parts[0]) + [True] * (len(ids) - len(parts[0]))
        scores = {name: rng.random(len(ids)).astype(np.float32).tolist() for name in ("first", "second")}
        made.append({"text": prompt + response, "input_ids": ids, "supervised": supervised, **scores})
    return made


@pytest.fixture(scope="module")
def place(tmp_path_factory, tokenizer):
    place = tmp_path_factory.mktemp("inspect")
    columns = {"first": "importance", "second": "importance"}
    write_shards(place / "shards", tokenizer, columns=columns, documents=documents_with_text(tokenizer))
    for name, objective, kept in (("go", "go", "4"), ("sft", "sft", "3")):
        words = ["run", "--shards", str(place / "shards"), "--model", "tiny", "--use_cpu", "--grouper", "first"]
        words += ["--objective", objective, "--eval_fraction", "0.3", "--token_losses", kept, "--max_steps", "4"]
        words += ["--save_strategy", "no", "--eta", "0.6", "--output_dir", str(place / name)]
        assert command(*words) == 0
    return place


def command(*words):
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return stop.value.code


def view_of(path):
    return json.loads(re.search(r'id="viewer-data">(.*?)</script>', path.read_text("utf-8")).group(1))


def kept(run):
    rows = pq.read_table(run / "token_losses.parquet").to_pylist()
    return [[row for row in rows if (row["step"] > 0) == after] for after in (False, True)]


def rows_of(shards):
    return [row for table in ShardDirectory(shards).tables() for row in table.to_pylist()]


def as_array(values):
    return np.array(values, dtype=np.float64)  # None is NaN


def test_the_page_holds_what_the_runs_have_kept(place, capsys):
    page = place / "page.html"
    assert command("inspect", place / "go", "--other", place / "sft", "--html", page) == 0
    assert f"{page}: 3 documents, first, loss before, loss after, change" in capsys.readouterr().out
    view = view_of(page)
    (before, after), (_, other) = kept(place / "go"), kept(place / "sft")
    texts = {row["document_id"]: row for row in rows_of(place / "shards")}
    assert [one["id"] for one in view["documents"]] == [row["document_id"] for row in other]
    for number, document in enumerate(view["documents"]):
        shard, scores = texts[document["id"]], document["scores"]
        assert document["text"] == shard["text"]
        assert document["tokens"]["id"] == shard["input_ids"]
        assert "".join(document["tokens"]["text"]) == shard["text"] + "</s>"
        assert scores["first"] == shard["first"]
        assert scores["loss before"] == before[number]["loss"]
        assert scores["loss after"] == after[number]["loss"]
        assert scores["loss after, sft"] == other[number]["loss"]
        change = as_array(after[number]["loss"]) - as_array(before[number]["loss"])
        np.testing.assert_array_equal(as_array(scores["change"]), change)
        between = as_array(other[number]["loss"]) - as_array(after[number]["loss"])
        np.testing.assert_array_equal(as_array(scores["after, sft less this"]), between)


def test_the_tables_are_over_all_kept_documents(place):
    page = place / "tables.html"
    assert command("inspect", place / "go", "--html", page) == 0
    view, (before, after) = view_of(page), kept(place / "go")
    losses = [np.concatenate([as_array(row["loss"]) for row in rows]) for rows in (before, after)]
    inside = np.concatenate([row["first.important"] for row in after]) & np.isfinite(losses[0])
    known = np.isfinite(losses[0])
    shares, fell, rose = view["tables"]
    important, unimportant, every = (row["cells"] for row in shares["rows"])
    assert important[:4] == ["important", inside.sum(), *(pytest.approx(loss[inside].mean()) for loss in losses)]
    assert important[4:] == [f"{loss[inside].sum() / loss[known].sum():.1%}" for loss in losses]
    assert unimportant[1] + important[1] == every[1] == known.sum()
    changes = sorted((losses[1] - losses[0])[known])
    assert [row["cells"][1] for row in fell["rows"]] == [x for x in changes[:12] if x < 0]
    assert [row["cells"][1] for row in rose["rows"]] == [x for x in changes[::-1][:12] if x > 0]
    assert len(fell["rows"]) == 12  # it has learned something
    for row in fell["rows"]:
        number, index = row["at"]
        assert view["documents"][number]["tokens"]["text"][index] == row["cells"][0]
        assert view["documents"][number]["scores"]["change"][index] == row["cells"][1]
        assert row["cells"][5] == ("important" if after[number]["first.important"][index] else "unimportant")


def test_the_terminal_shows_one_document(place, capsys):
    assert command("inspect", place / "go", "--document", "2", "--grouper", "second", "--eta", "0.8") == 0
    out = " ".join(capsys.readouterr().out.split())  # lines are wrapped at the terminal's width
    _, after = kept(place / "go")
    document = after[2]
    assert f"document {document['document_id']}, number 2 of 0 to 3" in out
    loss = as_array(document["loss"])
    assert f"loss after · mean {np.nanmean(loss):.4g}" in out
    rows = rows_of(place / "shards")
    scores = next(row["second"] for row in rows if row["document_id"] == document["document_id"])
    inside = important_tokens(np.array(scores), np.array(document["supervised"]), 0.8, "threshold").important
    share = np.nansum(loss[inside]) / np.nansum(loss)
    assert f"{share:.1%} of the loss is of important tokens" in out
    assert "[[" in out
    assert "share of the loss by group of second (over 4 documents, eta 0.8, losses in nats)" in out


def test_one_document_by_its_id(place, capsys):
    _, after = kept(place / "go")
    page = place / "one.html"
    assert command("inspect", place / "go", "--document", after[1]["document_id"], "--html", page) == 0
    view = view_of(page)
    assert [document["id"] for document in view["documents"]] == [after[1]["document_id"]]
    led = [row for table in view["tables"] for row in table["rows"] if "at" in row]
    assert led
    for row in led:
        assert view["documents"][0]["tokens"]["text"][row["at"][1]] == row["cells"][0]
    assert command("inspect", place / "go", "--document", "nothing") == 1
    assert "a number from 0 to 3" in capsys.readouterr().err


def test_shards_that_are_gone_or_changed_are_refused(place, tokenizer, tmp_path, capsys):
    run = shutil.copytree(place / "go", tmp_path / "run")
    content = json.loads((run / "run.json").read_text())
    content["shards"][0]["path"] = str(tmp_path / "gone")
    (run / "run.json").write_text(json.dumps(content))
    assert command("inspect", run) == 1
    said = capsys.readouterr().err
    assert str(tmp_path / "gone") in said
    assert "--shards" in said
    assert command("inspect", run, "--shards", place / "shards") == 0
    columns = {"first": "importance", "second": "importance"}
    write_shards(tmp_path / "gone", tokenizer, columns=columns, documents=documents_with_text(tokenizer, 19))
    assert command("inspect", run) == 1
    assert "the shards have changed since the run" in capsys.readouterr().err


def test_what_is_no_run_with_losses_is_refused(place, tmp_path, capsys):
    assert command("inspect", tmp_path) == 1
    assert "found no run.json" in capsys.readouterr().err
    run = shutil.copytree(place / "go", tmp_path / "without")
    (run / "token_losses.parquet").rename(run / "x")
    assert command("inspect", run) == 1
    assert "--token_losses N" in capsys.readouterr().err
    pq.write_table(pq.read_table(run / "x").slice(0, 4), run / "token_losses.parquet")
    assert command("inspect", run) == 1
    assert "the run did not end" in capsys.readouterr().err
    assert command("inspect", place / "go", "--htlm", "x") == 1
    assert "--html" in capsys.readouterr().err
    assert command("inspect", place / "go", "--eta", "2", "--html", tmp_path / "no" / "x.html") == 1
    said = capsys.readouterr().err
    assert "--eta" in said
    assert "--html" in said


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_in_a_browser(place, tmp_path, theme):
    page_file = tmp_path / "page.html"
    assert command("inspect", place / "go", "--other", place / "sft", "--html", page_file) == 0
    view = view_of(page_file)
    with browser(tmp_path) as page:
        media = [{"name": "prefers-color-scheme", "value": theme}]
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
        page.get(page_file.as_uri())
        panels = all_of(page, ".panels > .panel")
        assert [panel.get_attribute("data-grouper") for panel in panels] == list(view["columns"])
        light = page.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert light == ("rgb(247, 246, 243)" if theme == "light" else "rgb(22, 24, 29)")
        change = as_array(view["documents"][0]["scores"]["change"])
        fell = page.execute_script(
            "return [...document.querySelectorAll('[data-grouper=change] .token.fell')].map((e) => +e.dataset.index)"
        )
        pieces = page.execute_script("return sftGo.view.panels[3].pieces.map((p) => p.tokens)")
        own = {tokens[0] for tokens in pieces if tokens and np.nansum(change[tokens]) < 0}
        assert set(fell) == own
        # the share of the loss follows eta
        set_eta(page, "0.8")
        document = view["documents"][0]
        loss, supervised = as_array(document["scores"]["loss after"]), np.array(document["tokens"]["supervised"])
        inside = important_tokens(np.array(document["scores"]["first"]), supervised, 0.8, "threshold").important
        share = f"{100 * np.nansum(loss[inside]) / np.nansum(loss):.1f}% of the loss is of important tokens"
        until(lambda: share in one(page, "[data-grouper='loss after'] .stats").text)
        # a row of a table leads to its token
        number, index = view["tables"][1]["rows"][0]["at"]
        all_of(page, ".goto")[0].click()
        until(lambda: one(page, ".tooltip").is_displayed())
        assert page.execute_script("return sftGo.view.number") == number
        assert f"token {index}," in one(page, ".tooltip").text
        assert requests_made(page) == [page_file.as_uri()]
        assert complaints(page) == []
