"""`eval_documents.parquet` at the end of real runs, against forward passes document by document and against the log."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

from common.shards import ShardDirectory
from common.thresholds import important_tokens
from tests.train.conftest import COLUMNS, write_shards
from train.cli import main

ROOT = Path(__file__).resolve().parents[3]
COMMON = [
    *("--use_cpu", "--grouper", "first", "--eta", "0.6", "--eval_fraction", "0.3", "--max_steps", "4", "--seed", "1"),
    *("--per_device_train_batch_size", "4", "--per_device_eval_batch_size", "2"),
]
FORMS = {
    "padded": (),
    "packed": ("--packing", "true"),
    "padding-free": ("--padding_free", "true"),
    "sft, rank": ("--objective", "sft", "--ties", "rank"),
    "another seed": ("--seed", "5"),
    # Ended between two evaluations; the best checkpoint is not the last one; the last round is dropped.
    "between": ("--eval_strategy", "steps", "--eval_steps", "3"),
    "best": (
        *("--eval_strategy", "steps", "--eval_steps", "1", "--save_strategy", "steps", "--save_steps", "1"),
        *("--load_best_model_at_end", "true", "--learning_rate", "3.0"),  # gets worse with every step
    ),
    "dropped": ("--dataloader_drop_last", "true", "--per_device_eval_batch_size", "3"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory, tokenizer):
    place = tmp_path_factory.mktemp("held_out")
    write_shards(place / "shards", tokenizer, 24, COLUMNS)
    for name, words in FORMS.items():
        run(place, name, *words)
    return place


def run(place: Path, name: str, *words: str) -> None:
    command = ["run", "--shards", str(place / "shards"), "--output_dir", str(place / name), *COMMON, *words]
    with pytest.raises(SystemExit) as stop:
        main(command)
    assert stop.value.code == 0


def opened(output: Path) -> tuple[dict, dict, list[dict]]:
    table = pq.read_table(output / "eval_documents.parquet")
    log = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return table.to_pydict(), json.loads(table.schema.metadata[b"sft_go"]), log


def documents_of(place: Path) -> dict[str, dict]:
    return {d["document_id"]: d for table in ShardDirectory(place / "shards").tables() for d in table.to_pylist()}


def totals(table: dict) -> dict[str, float]:
    """Return what an evaluation of the whole would log."""
    tokens, loss = sum(table["tokens"]), sum(table["loss"])
    important, its_loss = sum(table["first.important_tokens"]), sum(table["first.important_loss"])
    return {
        "eval_loss_all": loss / tokens,
        "eval_loss_important": its_loss / important,
        "eval_loss_unimportant": (loss - its_loss) / (tokens - important),
        "eval_important_share": important / tokens,
    }


@pytest.mark.parametrize("form", FORMS)
def test_each_documents_losses_are_those_of_its_own_forward_pass(place, form):
    table, facts, _ = opened(place / form)
    documents = documents_of(place)
    model = AutoModelForCausalLM.from_pretrained(place / form, dtype=torch.float32).eval()
    assert (facts["columns"], facts["eta"]) == (["first", "second"], 0.6)
    assert len(table["document_id"]) == 7
    for index, document_id in enumerate(table["document_id"]):
        document = documents[document_id]
        ids = torch.tensor([document["input_ids"]])
        with torch.no_grad():
            log_probs = model(ids).logits.double().log_softmax(-1)
        losses = np.zeros(ids.shape[1])
        losses[1:] = -log_probs[0, :-1].gather(1, ids[0, 1:, None])[:, 0].numpy()
        predicted = np.array(document["supervised"]) & (np.arange(len(losses)) > 0)
        assert table["tokens"][index] == predicted.sum()
        assert table["loss"][index] == pytest.approx(losses[predicted].sum(), rel=1e-5)
        for column in ("first", "second"):
            groups = important_tokens(document[column], document["supervised"], 0.6, facts["ties"])
            important = groups.important & predicted
            assert table[f"{column}.important_tokens"][index] == important.sum()
            assert table[f"{column}.important_loss"][index] == pytest.approx(losses[important].sum(), rel=1e-5)


@pytest.mark.parametrize("form", [name for name in FORMS if name not in ("best", "dropped")])
def test_sums_are_those_of_the_last_logged_evaluation(place, form):
    table, _, log = opened(place / form)
    logged = [entry for entry in log if "eval_loss_all" in entry]
    assert logged[-1]["step"] == 4
    for name, value in totals(table).items():
        assert value == pytest.approx(logged[-1][name], abs=1e-6), name


def test_one_evaluation_a_step_is_logged_and_the_last_one_is_not_run_twice(place):
    for form, steps in (("padded", [4]), ("between", [3, 4]), ("best", [1, 2, 3, 4]), ("dropped", [4])):
        _, _, log = opened(place / form)
        assert [entry["step"] for entry in log if "eval_loss" in entry] == steps, form


def test_of_the_best_checkpoint_it_is_that_ones_losses(place):
    table, _, log = opened(place / "best")
    logged = [entry["eval_loss_all"] for entry in log if "eval_loss_all" in entry]
    assert totals(table)["eval_loss_all"] == pytest.approx(min(logged), abs=1e-6)
    assert min(logged) < logged[-1] - 0.01


def test_seeds_and_forms_are_asked_the_same(place):
    runs = [json.loads((place / form / "run.json").read_text()) for form in FORMS]
    assert len({run["eval_hash"] for run in runs}) == 1
    assert len({tuple(opened(place / form)[0]["document_id"]) for form in FORMS}) == 1
    assert {opened(place / form)[1]["eval_hash"] for form in FORMS} == {runs[0]["eval_hash"]}
    assert len({opened(place / form)[0]["loss"][0] for form in ("padded", "another seed")}) == 2


def test_without_held_out_documents_there_is_none(place):
    run(place, "nothing", "--eval_fraction", "0", "--per_device_eval_batch_size", "8", "--max_steps", "1")
    assert not (place / "nothing" / "eval_documents.parquet").exists()
    content = json.loads((place / "nothing" / "run.json").read_text())
    assert content["eval_hash"] is content["yardsticks"] is None


def test_continued_after_its_last_evaluation_it_evaluates_once_more_and_logs_nothing(place):
    run(place, "again", "--save_steps", "4")
    before, _, log = opened(place / "again")
    (place / "again" / "eval_documents.parquet").unlink()
    run(place, "again", "--save_steps", "4", "--resume_from_checkpoint")
    after, _, log_after = opened(place / "again")
    assert after == before
    assert [entry["step"] for entry in log_after] == [entry["step"] for entry in log]


def test_losses_that_are_not_numbers_are_shown(place):
    run(place, "nan", "--learning_rate", "1e30", "--max_grad_norm", "1e30", "--optim", "sgd")
    table, _, _ = opened(place / "nan")
    assert np.isnan(table["loss"]).all()


@pytest.mark.slow
def test_on_two_ranks_it_is_the_same_file(place):
    output = place / "ranks"
    words = ["run", "--shards", str(place / "shards"), "--output_dir", str(output), *COMMON]
    words += ["--per_device_train_batch_size", "2", "--token_losses", "99"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    done = subprocess.run(
        [*launcher, "-m", "train.cli", *words],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    expected, facts, _ = opened(place / "padded")
    found, other_facts, log = opened(output)
    assert other_facts == facts
    for name, values in expected.items():
        assert found[name] == (values if name == "document_id" else pytest.approx(values, rel=1e-4)), name
    logged = [entry for entry in log if "eval_loss_all" in entry][-1]
    for name, value in totals(found).items():
        assert value == pytest.approx(logged[name], abs=1e-6), name
    # Each token's losses, kept before the first step and after the last, whichever rank had their document.
    kept = pq.read_table(output / "token_losses.parquet").to_pylist()
    for step in sorted({row["step"] for row in kept}):
        sums = {row["document_id"]: math.fsum(filter(None, row["loss"])) for row in kept if row["step"] == step}
        assert list(sums) == list(found["document_id"])
        if step:
            assert list(sums.values()) == pytest.approx(found["loss"], rel=1e-5)
        else:
            first = sums
    assert first != sums
