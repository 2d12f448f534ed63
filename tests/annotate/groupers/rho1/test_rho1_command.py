"""rho1 through `annotate run`: columns and kinds in the shards, refusals, rejected rows; and 500 real documents."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config

from common.shards import column_kinds
from tests.annotate.groupers.rho1.rho1_models import make_tokenizer, save_checkpoint, slow_losses

SHARED = Path(__file__).resolve().parents[4].parent / "shared"


def annotate(*arguments: object) -> subprocess.CompletedProcess:
    """Run the real command in a process of its own."""
    command = [sys.executable, "-c", "from annotate.cli import main; main()", "run", "--engine", "local"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    return subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, env=environment)


def read(out: Path) -> tuple[list[list[int]], np.ndarray, dict]:
    """Return the token ids of every row, the flat rho1 column, and the manifest."""
    table = pq.read_table(sorted(out.glob("part-*.parquet")))
    values = table["rho1"].combine_chunks().flatten().to_numpy()
    return table["input_ids"].to_pylist(), values, json.loads((out / "manifest.json").read_text())


@pytest.fixture
def data(tmp_path) -> Path:
    """Four records over the words of the test tokenizer; the third holds the word w13."""
    path = tmp_path / "data.jsonl"
    responses = ["w3 w4 w5", "w6 w7 w8 w9 w10", "w11 w13 w12", "w14"]
    path.write_text("".join(json.dumps({"prompt": "w1 w2", "completion": text}) + "\n" for text in responses))
    return path


def test_shards_hold_reference_losses_and_their_kind(data, tmp_path):
    reference, base = save_checkpoint(tmp_path / "reference"), save_checkpoint(tmp_path / "base", "qwen2", seed=5)
    out = tmp_path / "shards"
    settings = ["--data", data, "--tokenizer", reference, "--grouper", "rho1", "--out", out]
    result = annotate(*settings, "--reference-model", reference, "--base-model", base, "--rows-per-shard", 3)
    assert result.returncode == 0, result.stderr
    documents, values, manifest = read(out)
    expected, of_base = (
        slow_losses(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32), documents)
        for path in (reference, base)
    )
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-5)
    table = pq.read_table(sorted(out.glob("part-*.parquet")))
    excess = table["rho1_excess"].combine_chunks().flatten().to_numpy()
    np.testing.assert_allclose(excess, of_base - expected, rtol=0, atol=2e-5)
    assert column_kinds(table.schema) == {"rho1": "reference_loss", "rho1_excess": "importance"}
    (grouper,) = manifest["groupers"]
    assert grouper["parameters"]["reference_revision"].startswith("sha256:")
    assert grouper["parameters"]["dtype"] == "float32"
    supervised = table["supervised"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    assert grouper["report"]["mean_reference_loss"] == pytest.approx(float(expected[supervised].mean()), abs=1e-5)

    # Other weights under the same name are another setting: refused, the shards stay.
    weights = load_file(tmp_path / "reference" / "model.safetensors")
    weights["model.norm.weight"].mul_(1.5)
    save_file(weights, tmp_path / "reference" / "model.safetensors", metadata={"format": "pt"})
    result = annotate(*settings, "--reference-model", reference, "--base-model", base, "--rows-per-shard", 3)
    assert result.returncode != 0
    assert "reference_revision" in result.stderr
    np.testing.assert_array_equal(read(out)[1], values)


def test_a_non_finite_loss_is_a_rejected_row_and_the_run_goes_on(data, tmp_path):
    reference = save_checkpoint(tmp_path / "reference")
    weights = load_file(tmp_path / "reference" / "model.safetensors")
    weights["model.embed_tokens.weight"][13] = float("nan")
    save_file(weights, tmp_path / "reference" / "model.safetensors", metadata={"format": "pt"})
    out = tmp_path / "shards"
    settings = ["--data", data, "--tokenizer", reference, "--grouper", "rho1", "--reference-model", reference]
    result = annotate(*settings, "--out", out)
    assert result.returncode == 0, result.stderr
    assert len(read(out)[0]) == 3
    (reject,) = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    assert reject["source_row"] == 2
    assert "not finite" in json.dumps(reject)


def test_another_tokenizer_is_refused_in_one_sentence(data, tmp_path):
    make_tokenizer(first="v").save_pretrained(tmp_path / "target")
    reference = save_checkpoint(tmp_path / "reference")
    settings = ["--data", data, "--tokenizer", tmp_path / "target", "--grouper", "rho1", "--reference-model", reference]
    result = annotate(*settings, "--out", tmp_path / "shards")
    assert result.returncode != 0
    assert "is not the one that the documents are tokenized with" in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert not list((tmp_path / "shards").glob("part-*"))


needs_shared = pytest.mark.skipif(
    not (SHARED / "tokenizers" / "llama-3").is_dir(), reason="needs ../shared (real data and a real tokenizer)"
)


def check_real_documents(directory: Path, tokenizer, config_class: type, alpaca: int, lima: int, length: int) -> None:
    """Annotate the first documents of both sets, cut at `length` tokens; compare with full logits, one by one."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = config_class(
        vocab_size=len(tokenizer), num_key_value_heads=2, max_position_embeddings=4096, initializer_range=0.2, **sizes
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    reference = directory / "reference"
    model.save_pretrained(reference)
    tokenizer.save_pretrained(reference)
    for name, limit in (("alpaca", alpaca), ("lima", lima)):
        source = ["--data", SHARED / "data" / f"{name}.json", "--limit", limit, "--max-length", length]
        scores = ["--grouper", "rho1", "--reference-model", reference]
        result = annotate(*source, *scores, "--tokenizer", reference, "--out", directory / name)
        assert result.returncode == 0, result.stderr
        documents, values, _ = read(directory / name)
        assert len(documents) >= 0.97 * limit  # a few records have no response, or none is left after the cut
        expected = slow_losses(model, documents)
        assert expected.std() > 0.3
        np.testing.assert_allclose(values, expected, rtol=0, atol=1e-5)


@needs_shared
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("config_class", [LlamaConfig, Qwen2Config])
def test_500_real_documents_at_full_length(tmp_path, config_class):
    """With a byte-level vocabulary of 4,000 entries learned from the same texts, so that full logits take seconds."""
    records = json.loads((SHARED / "data" / "lima.json").read_text())[:100]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=4000, special_tokens=["<end>"], initial_alphabet=alphabet)
    backend.train_from_iterator((record["output"] for record in records), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")
    check_real_documents(tmp_path, tokenizer, config_class, alpaca=400, lima=100, length=4096)


@needs_shared
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_real_documents_in_the_vocabulary_of_llama_3(tmp_path):
    """All 128,256 entries, which makes the full logits of the comparison slow: so fewer and shorter documents."""
    tokenizer = AutoTokenizer.from_pretrained(SHARED / "tokenizers" / "llama-3")
    check_real_documents(tmp_path, tokenizer, LlamaConfig, alpaca=40, lima=4, length=256)
