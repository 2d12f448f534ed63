"""`train evaluate --shards`: the file that a run leaves, for any checkpoint."""

import json
import math
import shutil

import pyarrow.parquet as pq
import pytest

from common.errors import UserError
from tests.train.conftest import COLUMNS, build_tokenizer, write_shards
from tests.train.runs import small_model
from train.cli import main
from train.evaluation.command import run

CHOSEN = ("--eval_fraction", "0.3", "--eta", "0.6", "--use_cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory, tokenizer):
    place = tmp_path_factory.mktemp("documents")
    write_shards(place / "shards", tokenizer, 24, COLUMNS)
    words = ["--grouper", "first", "--eta", "0.6", "--eval_fraction", "0.3", "--max_steps", "2", "--use_cpu"]
    with pytest.raises(SystemExit) as stop:
        main(["run", "--shards", str(place / "shards"), "--output_dir", str(place / "run"), *words])
    assert stop.value.code == 0
    return place


def opened(folder):
    table = pq.read_table(folder / "eval_documents.parquet")
    return table.to_pydict(), json.loads(table.schema.metadata[b"sft_go"])


def evaluate(place, target, out, *words):
    return run([str(target), "--shards", str(place / "shards"), *CHOSEN, "--out", str(place / out), *words])


def test_of_a_runs_checkpoint_it_is_the_runs_own_file(place, capsys):
    assert evaluate(place, place / "run", "again") == 0
    (expected, facts), (found, other_facts) = opened(place / "run"), opened(place / "again")
    assert len(other_facts.pop("checkpoint_hash")) == 64
    assert other_facts == {**facts, "model": str(place / "run"), "max_length": 64}
    for name, values in expected.items():
        assert found[name] == (values if name == "document_id" else pytest.approx(values, rel=1e-5)), name
    out = capsys.readouterr().out
    assert "7 held-out documents" in " ".join(out.split())  # a long path breaks the line
    assert f"{sum(found['loss']) / sum(found['tokens']):.4f} nats" in out


def test_of_the_untrained_model(place, tokenizer):
    assert evaluate(place, "tiny", "tiny") == 0
    untrained, facts = opened(place / "tiny")
    trained, run_facts = opened(place / "run")
    assert facts["eval_hash"] == run_facts["eval_hash"]
    assert sum(untrained["loss"]) / sum(untrained["tokens"]) == pytest.approx(math.log(len(tokenizer)), abs=0.1)
    assert trained["tokens"] == untrained["tokens"]
    assert trained["loss"] != untrained["loss"]


def test_of_other_shards_beside_every_run_of_a_sweep(place, tokenizer, capsys):
    sweep = place / "sweep"
    for seed in ("1", "2"):
        shutil.copytree(place / "run", sweep / "runs" / "sft" / seed)
    (sweep / "runs" / "sft" / "3").mkdir()
    (sweep / "sweep.json").write_text("{}")
    write_shards(place / "other", tokenizer, 9, COLUMNS)
    ask = [str(sweep), "--shards", str(place / "other"), "--eval_fraction", "1", "--use_cpu", "--eta", "0.6"]
    capsys.readouterr()
    assert run(ask) == 0
    said = capsys.readouterr().out
    assert said.count("(written: held_out/other.parquet)") == 2
    assert "left out  sft/3: not finished" in said
    files = [sweep / "runs" / "sft" / seed / "held_out" / "other.parquet" for seed in ("1", "2")]
    first, second = (pq.read_table(file) for file in files)
    assert first.num_rows == 9
    assert first["loss"] == second["loss"]
    # killed in between, or asked again: only what is not there, or is of another checkpoint, is asked
    files[1].write_bytes(b"half")
    tokens = (sweep / "runs" / "sft" / "1" / "generation_config.json").read_text()
    assert run(ask) == 0
    said = capsys.readouterr().out
    assert (said.count("(kept from before: "), said.count("(written: ")) == (1, 1)
    (sweep / "runs" / "sft" / "1" / "generation_config.json").write_text(tokens + " ")
    assert run([*ask, "--eval_groupers", "first"]) == 0
    assert capsys.readouterr().out.count("(written: ") == 2
    assert "second.important_loss" not in pq.read_schema(files[0]).names
    assert run([str(place / "run"), *ask[1:], "--name", "nine"]) == 0
    assert pq.read_table(place / "run" / "held_out" / "nine.parquet")["loss"] == first["loss"]
    with pytest.raises(UserError, match="--name a/b: expected letters"):
        run([*ask, "--name", "a/b"])


def test_other_questions_have_another_hash(place):
    hashes = {opened(place / "run")[1]["eval_hash"]}
    for number, words in enumerate((("--eval_seed", "1"), ("--max_length", "12"), ("--eval_fraction", "0.5"))):
        assert evaluate(place, "tiny", str(number), *words) == 0
        hashes.add(opened(place / str(number))[1]["eval_hash"])
    assert len(hashes) == 4


def test_of_an_adapter_it_is_that_of_the_merged_model(place, tokenizer):
    peft = pytest.importorskip("peft")
    base = place / "base"
    model = small_model(tokenizer)
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    model.name_or_path = str(base)
    lora = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(model, lora)
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(place / "adapter")
    adapted.merge_and_unload().save_pretrained(place / "merged")
    tokenizer.save_pretrained(place / "merged")
    losses = []
    for name in ("base", "adapter", "merged"):
        assert evaluate(place, place / name, f"of-{name}", "--eval_groupers", "second") == 0
        losses.append(opened(place / f"of-{name}")[0])
    assert losses[1]["loss"] == pytest.approx(losses[2]["loss"], rel=1e-5)
    assert losses[1]["second.important_loss"] == pytest.approx(losses[2]["second.important_loss"], rel=1e-5)
    assert "first.important_loss" not in losses[1]
    assert losses[0]["loss"] != pytest.approx(losses[1]["loss"], rel=1e-5)


def test_what_does_not_fit_is_refused(place, tmp_path):
    other = tmp_path / "other"
    small_model(build_tokenizer("other words make other merges of bytes")).save_pretrained(other)
    build_tokenizer("other words make other merges of bytes").save_pretrained(other)
    with pytest.raises(UserError, match="its tokenizer is not the one"):
        evaluate(place, other, "x")
    with pytest.raises(UserError, match="--eval_groupers thrid"):
        evaluate(place, "tiny", "x", "--eval_groupers", "thrid")
    with pytest.raises(UserError, match="chooses no document"):
        evaluate(place, "tiny", "x", "--eval_fraction", "0.001")
    assert not (place / "x").exists()
