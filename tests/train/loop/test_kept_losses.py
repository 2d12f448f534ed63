"""`--token_losses`: against forward passes of single documents, the log, the other file, and a run without it."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

from common.thresholds import important_tokens
from tests.train.conftest import COLUMNS, write_shards
from tests.train.evaluation.test_held_out_losses import documents_of, opened, totals
from tests.train.runs import small_model
from train.cli import main

COMMON = [
    *("--use_cpu", "--grouper", "first", "--eta", "0.6", "--eval_fraction", "0.3", "--max_steps", "4", "--seed", "1"),
    *("--per_device_train_batch_size", "4", "--per_device_eval_batch_size", "2", "--learning_rate", "0.01"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory, tokenizer):
    place = tmp_path_factory.mktemp("kept")
    write_shards(place / "shards", tokenizer, 24, COLUMNS)
    model = small_model(tokenizer)
    model.config.attention_dropout = 0.2  # a pass too many would change the steps
    model.save_pretrained(place / "model")
    tokenizer.save_pretrained(place / "model")
    run(place, "all", "--token_losses", "99", "--eval_on_start", "true")
    run(place, "packed", "--token_losses", "99", "--eval_on_start", "true", "--packing", "true")
    run(place, "three", "--token_losses", "3", "--save_steps", "2", "--save_strategy", "steps")
    run(place, "without")
    return place


def run(place, name, *words, status=0):
    words = ["run", "--shards", str(place / "shards"), "--model", str(place / "model"), *COMMON, *words]
    with pytest.raises(SystemExit) as stop:
        main([*words, "--output_dir", str(place / name)])
    assert stop.value.code == status


def kept(output):
    table = pq.read_table(output / "token_losses.parquet")
    return table.to_pylist(), json.loads(table.schema.metadata[b"sft_go"])


@pytest.mark.parametrize(("step", "name"), [(0, "model"), (4, "three")])
def test_each_loss_is_that_of_the_documents_own_forward_pass(place, step, name):
    rows, facts = kept(place / "three")
    assert facts["asked"] == 3
    assert facts["columns"] == ["first", "second"]
    assert [row["step"] for row in rows] == [0, 0, 0, 4, 4, 4]
    held_out = opened(place / "without")[0]["document_id"]
    assert [row["document_id"] for row in rows] == held_out[:3] * 2
    documents = documents_of(place)
    model = AutoModelForCausalLM.from_pretrained(place / name, dtype=torch.float32).eval()
    for row in rows:
        if row["step"] != step:
            continue
        document = documents[row["document_id"]]
        assert (row["input_ids"], row["supervised"]) == (document["input_ids"], document["supervised"])
        with torch.no_grad():
            log_probs = model(torch.tensor([row["input_ids"]])).logits.double().log_softmax(-1)[0]
        for place_of, (token, supervised, loss) in enumerate(
            zip(row["input_ids"], row["supervised"], row["loss"], strict=True)
        ):
            if supervised and place_of:
                assert loss == pytest.approx(-log_probs[place_of - 1, token].item(), abs=1e-5)
            else:
                assert loss is None
        groups = important_tokens(document["second"], document["supervised"], 0.6, "threshold")
        assert row["second.important"] == groups.important.tolist()


@pytest.mark.parametrize("name", ["all", "packed"])
def test_sums_are_the_logged_ones_before_and_after(place, name):
    rows, _ = kept(place / name)
    table, _, log = opened(place / name)
    logged = {entry["step"]: entry for entry in log if "eval_loss_all" in entry}
    for step in (0, 4):
        losses = [[loss for loss in row["loss"] if loss is not None] for row in rows if row["step"] == step]
        mean = sum(map(sum, losses)) / sum(map(len, losses))
        assert mean == pytest.approx(logged[step]["eval_loss_all"], abs=1e-5)
    assert abs(logged[0]["eval_loss_all"] - logged[4]["eval_loss_all"]) > 0.01  # it has learned something
    assert [len(one) for one in losses] == table["tokens"]
    assert list(map(sum, losses)) == pytest.approx(table["loss"], abs=1e-5)
    important = [sum(x for x, m in zip(r["loss"], r["first.important"], strict=True) if m) for r in rows if r["step"]]
    assert important == pytest.approx(table["first.important_loss"], abs=1e-5)
    assert totals(table)["eval_loss_all"] == pytest.approx(mean, abs=1e-6)


def test_a_run_with_it_makes_the_steps_of_a_run_without(place):
    with_it, without = (
        [(entry["step"], entry["loss"], entry["grad_norm"]) for entry in opened(place / name)[2] if "loss" in entry]
        for name in ("three", "without")
    )
    assert len(without) == 4
    assert with_it == without


def test_a_resumed_run_keeps_what_was_before_the_first_step(place, capsys):
    before, _ = kept(place / "three")
    resumed = shutil.copytree(place / "three", place / "resumed")
    shutil.rmtree(resumed / "checkpoint-4")
    marked = pq.read_table(resumed / "token_losses.parquet").slice(0, 3)  # as a kill leaves it: only the rows before
    pq.write_table(marked, resumed / "token_losses.parquet")
    words = ("--save_steps", "2", "--save_strategy", "steps", "--resume_from_checkpoint", "true")
    run(place, "resumed", "--token_losses", "2", *words, status=1)
    assert "asked was 3, is 2" in capsys.readouterr().err
    run(place, "resumed", "--token_losses", "3", *words)
    after, _ = kept(resumed)
    assert after[:3] == before[:3]
    for row, other in zip(after[3:], before[3:], strict=True):
        assert row["step"] == 4
        np.testing.assert_allclose(*([x for x in r["loss"] if x is not None] for r in (row, other)), atol=1e-6)


def test_a_run_that_began_without_cannot_go_on_with_it(place, capsys):
    shutil.copytree(place / "three", place / "began_without")
    (place / "began_without" / "token_losses.parquet").unlink()
    run(
        place, "began_without", "--token_losses", "3", "--save_steps", "2", "--resume_from_checkpoint", "true", status=1
    )
    assert "has kept no" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "said"), [
    (("--token_losses", "3", "--eval_fraction", "0"), "--token_losses: nothing is held out"),
    (("--token_losses", "0"), "at least 1, found 0"),
])  # fmt: skip
def test_what_cannot_be_kept_is_refused(place, capsys, words, said):
    run(place, "refused", *words, status=1)
    assert said in capsys.readouterr().err
