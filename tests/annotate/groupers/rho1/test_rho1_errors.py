"""rho1: wrong checkpoints are refused before any work, wrong documents are rejected and the run goes on."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BertConfig, BertLMHeadModel, T5Config

import annotate.groupers.rho1.reference_loss
from annotate.groupers.base import GrouperOptions
from annotate.groupers.rho1.grouper import Rho1
from annotate.models.checkpoints import checkpoint_revision, hub_errors, load_model, resolve_device, resolve_dtype
from common.errors import UserError
from common.tokenizers import tokenizer_fingerprint
from tests.annotate.groupers.rho1.rho1_models import (
    make_batch,
    make_model,
    make_tokenizer,
    save_checkpoint,
    slow_losses,
)


def build(reference: str | None, **options) -> Rho1:
    """Return the grouper on the CPU, for documents in the vocabulary of the test checkpoints."""
    fingerprint = tokenizer_fingerprint(make_tokenizer())
    return Rho1.from_options(
        GrouperOptions(reference_model=reference, tokenizer_fingerprint=fingerprint, device="cpu", **options)
    )


def rewrite_weights(directory: str, change) -> None:
    """Change the weights of a checkpoint in place."""
    path = Path(directory) / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


@pytest.fixture
def checkpoint(tmp_path) -> str:
    return save_checkpoint(tmp_path / "reference")


def test_a_non_finite_loss_rejects_its_document_alone(checkpoint):
    """Token 13 has a NaN embedding: its documents are named, their neighbours in the same batch keep exact values."""
    documents = [[1, 2, 3], [4, 13, 5, 6], [7, 8, 9, 10, 11], [12, 13], [13, 14]]
    expected = slow_losses(AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32), documents)

    def spoil(weights):
        weights["model.embed_tokens.weight"][13] = float("nan")

    rewrite_weights(checkpoint, spoil)
    batch = make_batch(documents)
    scores = build(checkpoint).score(batch)
    # Document 3 ends with the token, so nothing is predicted from it: its losses are finite.
    assert sorted(scores.rejects) == [1, 4]
    assert "doc-1" in scores.rejects[1]
    assert "not finite" in scores.rejects[1]
    assert np.isfinite(scores.columns["rho1"]).all()
    kept = np.isin(batch.document_index, [0, 2, 3])
    np.testing.assert_allclose(scores.columns["rho1"][kept], expected[kept], rtol=0, atol=1e-5)
    assert scores.counters["rejected_documents"] == 2
    assert scores.counters["scored_tokens"] == 2 + 4 + 1


def test_a_non_finite_loss_of_the_base_model_rejects_too(checkpoint, tmp_path):
    base = save_checkpoint(tmp_path / "base", seed=3)
    rewrite_weights(base, lambda weights: weights["model.embed_tokens.weight"][13].fill_(float("inf")))
    scores = build(checkpoint, base_model=base).score(make_batch([[1, 2, 3], [4, 13, 5]]))
    assert list(scores.rejects) == [1]
    assert "base model" in scores.rejects[1]


def test_a_document_longer_than_the_model_is_rejected(checkpoint):
    scores = build(checkpoint).score(make_batch([[1] * 64, [1] * 65, [1, 2]]))
    assert list(scores.rejects) == [1]
    assert "doc-1 has 65 tokens" in scores.rejects[1]
    assert "--max-length 64" in scores.rejects[1]


def test_a_token_without_an_embedding_rejects_its_document(tmp_path):
    """An added token, such as a padding token, may lie past the end of the model's vocabulary."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<extra>"]})
    path = save_checkpoint(tmp_path / "reference", tokenizer=tokenizer)
    grouper = Rho1.from_options(GrouperOptions(reference_model=path, device="cpu"))
    scores = grouper.score(make_batch([[1, 2], [1, 97]]))
    assert list(scores.rejects) == [1]
    assert "no embedding" in scores.rejects[1]


def test_another_tokenizer_is_refused_before_weights_are_read(checkpoint, monkeypatch):
    make_tokenizer(first="v").save_pretrained(checkpoint)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("weights were loaded"))
    with pytest.raises(UserError, match=r"--reference-model .*its tokenizer .* is not the one"):
        build(checkpoint)


def test_both_models_are_checked_and_all_problems_come_together(checkpoint, tmp_path):
    base = save_checkpoint(tmp_path / "base", tokenizer=make_tokenizer(first="v"))
    with pytest.raises(UserError, match=r"--base-model .*its tokenizer"):
        build(checkpoint, base_model=base)
    with pytest.raises(UserError, match=r"(?s)2 problems.*--reference-model.*no such.*--base-model"):
        build(str(tmp_path / "nowhere"), base_model=base)


def test_a_vocabulary_larger_than_the_model_is_refused(tmp_path):
    path = save_checkpoint(tmp_path / "reference", vocabulary=50)
    with pytest.raises(UserError, match="tokenizer has 97 tokens, its model 50"):
        build(path)


def test_no_reference_model():
    with pytest.raises(UserError, match="expected --reference-model"):
        build(None)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["tokenizer.json", "tokenizer_config.json"], "no tokenizer files"),
        (["model.safetensors"], "no weight files"),
        (["config.json"], "no config.json"),
    ],
)
def test_missing_files(checkpoint, files, message):
    for name in files:
        (Path(checkpoint) / name).unlink()
    with pytest.raises(UserError, match=message):
        build(checkpoint)


def test_a_missing_part_of_sharded_weights(tmp_path):
    make_model("llama").save_pretrained(tmp_path, max_shard_size="20KB")
    make_tokenizer().save_pretrained(tmp_path)
    build(str(tmp_path))
    lost = sorted(tmp_path.glob("model-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(UserError, match=f"missing: {lost.name}"):
        build(str(tmp_path))


def test_an_adapter_is_no_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="found an adapter"):
        build(str(tmp_path))


def test_a_path_that_is_not_there_and_a_file(tmp_path):
    with pytest.raises(UserError, match="no such directory"):
        build(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="no such directory"):
        build("./nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="found a file"):
        build(str(tmp_path / "file"))


def test_a_hub_id_without_the_hub(monkeypatch):
    """What was wanted, and how to give a directory."""
    import huggingface_hub

    def fail(*_, **__):
        raise huggingface_hub.errors.LocalEntryNotFoundError("cannot find the requested files, connection error")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(UserError, match=r"owner/model: wanted the model from the hub.*--local-dir"):
        build("owner/model")


def test_gated_and_unknown_hub_ids():
    import httpx
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    response = httpx.Response(403, request=httpx.Request("GET", "https://hub.invalid"))
    for kind, message in ((GatedRepoError, "gated"), (RepositoryNotFoundError, "neither a directory here nor")):
        with pytest.raises(UserError, match=message), hub_errors("--reference-model", "owner/model"):
            raise OSError("wrapped") from kind("no", response=response)


def test_corrupt_weights(checkpoint):
    path = Path(checkpoint) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match="does not load"):
        build(checkpoint).score(make_batch([[1, 2]]))


@pytest.mark.parametrize(
    "change",
    [
        lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"),
        lambda weights: weights.update({"model.norm.weight": torch.ones(5)}),
        lambda weights: weights.pop("lm_head.weight"),
    ],
)
def test_weights_that_would_be_random_numbers(checkpoint, change):
    rewrite_weights(checkpoint, change)
    with pytest.raises(UserError, match=r"1 weights are\s+missing or of another shape"):
        build(checkpoint).score(make_batch([[1, 2]]))


def test_not_a_causal_language_model(tmp_path):
    tiny = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 32}
    BertLMHeadModel(BertConfig(vocab_size=97, **tiny)).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="depends on the tokens after it"):
        build(str(tmp_path)).score(make_batch([[1, 2]]))
    T5Config(vocab_size=97).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="encoder-decoder"):
        build(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "unheard-of"}))
    with pytest.raises(UserError, match="does not load"):
        build(str(tmp_path))


def test_an_unknown_way_from_hidden_states_to_logits_is_refused(tmp_path, monkeypatch):
    """What this module does not know it must notice: here it is made to forget Granite's scale."""
    path = save_checkpoint(tmp_path, "granite")
    monkeypatch.setattr(annotate.groupers.rho1.reference_loss, "_logit_scale", lambda config: 1.0)
    with pytest.raises(UserError, match="in a way that is not"):
        build(path).score(make_batch([[1, 2]]))


def test_settings_and_devices(checkpoint):
    with pytest.raises(UserError, match="--dtype int8"):
        build(checkpoint, dtype="int8")
    with pytest.raises(UserError, match="--batch-tokens -1"):
        build(checkpoint, batch_tokens=-1)
    with pytest.raises(UserError, match="--device tpu"):
        resolve_device("tpu")
    assert (resolve_dtype(None, "cpu"), resolve_dtype(None, "cuda:1")) == ("float32", "bfloat16")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="finds no CUDA device"):
            load_model(AutoModelForCausalLM, checkpoint, "--reference-model", None, "float32", "cuda")


def test_a_revision_follows_the_content(checkpoint, tmp_path):
    first = checkpoint_revision(checkpoint, "--reference-model")
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    assert checkpoint_revision(str(copy), "--reference-model") == first
    with_tokenizer = checkpoint_revision(str(copy), "--reference-model", with_tokenizer=True)
    make_tokenizer(first="v").save_pretrained(copy)
    assert checkpoint_revision(str(copy), "--reference-model") == first
    assert checkpoint_revision(str(copy), "--reference-model", with_tokenizer=True) != with_tokenizer

    parameters = build(checkpoint).parameters
    rewrite_weights(checkpoint, lambda weights: weights["model.norm.weight"].mul_(1.5))
    assert checkpoint_revision(checkpoint, "--reference-model") != first
    assert build(checkpoint).parameters != parameters
    with pytest.raises(UserError, match="the checkpoint has changed"):
        Rho1.from_parameters(parameters, GrouperOptions(device="cpu"))
