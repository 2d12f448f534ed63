"""The llmlingua2 grouper: scores of target tokens, what does not change them, its report, and wrong checkpoints."""

import json
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    BertConfig,
    BertForSequenceClassification,
    CanineTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from annotate.groupers import grouper_class
from annotate.groupers.base import GrouperOptions
from annotate.groupers.llmlingua2 import grouper as llmlingua2
from annotate.tokens.batch import TokenBatch
from annotate.tokens.target import TargetTokenizer
from annotate.tokens.templates import Segment
from common.errors import UserError
from common.thresholds import important_tokens
from tests.annotate.groupers.llmlingua2.compressor_checkpoints import (
    MODULES,
    SAMPLE,
    TRICKY,
    save_compressor,
    small_tokenizer,
)
from tests.annotate.groupers.llmlingua2.test_alignment import slow_align
from tests.annotate.groupers.llmlingua2.test_llmlingua2_chunks import slow_words

TEXTS = [*TRICKY, *SAMPLE[:30], "", MODULES[1][:3000], " ", "words without any stop " * 140]


def options(directory, **settings) -> GrouperOptions:
    return GrouperOptions(compressor_model=str(directory), device="cpu", **settings)


def make_grouper(directory, **settings):
    return grouper_class("llmlingua2").from_options(options(directory, **settings))


@pytest.fixture(scope="module", params=["bert", "xlm-roberta"])
def directory(request, tmp_path_factory):
    return save_compressor(tmp_path_factory.mktemp("models") / "mine", request.param, small_tokenizer(request.param))


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return save_compressor(tmp_path_factory.mktemp("models") / "bert", "bert", small_tokenizer("bert"))


@pytest.fixture(scope="module")
def batch(sample_tokenizer) -> TokenBatch:
    """Documents of the shipped byte-level tokenizer, the second half of each supervised."""
    target = TargetTokenizer(str(sample_tokenizer))
    documents = [[Segment(t[: len(t) // 2], False), Segment(t[len(t) // 2 :], True)] for t in TEXTS]
    ids = [f"document {i}" for i in range(len(TEXTS))]
    return target.tokenize(documents, ids, list(range(len(TEXTS))), 4096, with_spans=True).batch


def test_scores_equal_a_slow_reference(directory, batch):
    result = make_grouper(directory).score(batch)
    scores = result.columns["llmlingua2"]
    assert scores.dtype == np.float32
    assert result.rejects == {}
    uncovered = 0
    for document, text in enumerate(batch.texts):
        here = batch.tokens_of(document)
        expected = slow_align(text, batch.spans[here].tolist(), slow_words(directory, text))
        np.testing.assert_allclose(scores[here], [score or 0.0 for score in expected], rtol=0, atol=1e-5)
        uncovered += sum(score is None for score, own in zip(expected, batch.supervised[here], strict=True) if own)
    assert result.counters["supervised_without_overlap"] == uncovered > 0
    assert result.counters["supervised_tokens"] == batch.supervised.sum()
    assert np.ptp(scores) > 0.5


def test_scores_do_not_depend_on_budget_order_or_neighbours(directory, batch):
    expected = make_grouper(directory, batch_tokens=1024).score(batch).columns["llmlingua2"]

    def check(grouper, part: TokenBatch, documents) -> None:
        places = np.concatenate([np.arange(batch.num_tokens)[batch.tokens_of(i)] for i in documents])
        found = grouper.score(part).columns["llmlingua2"]
        np.testing.assert_allclose(found, expected[places], rtol=0, atol=1e-5)

    for budget in (1, 600, 100_000):
        check(make_grouper(directory, batch_tokens=budget), batch, range(len(batch)))
    grouper = make_grouper(directory)
    for document in range(len(batch)):
        check(grouper, batch.select(np.array([document])), [document])
    order = list(range(len(batch)))[::-1]
    spans = np.concatenate([batch.spans[batch.tokens_of(i)] for i in order])
    reverse = TokenBatch(
        document_ids=[batch.document_ids[i] for i in order],
        source_rows=batch.source_rows[order],
        texts=[batch.texts[i] for i in order],
        input_ids=np.concatenate([batch.input_ids[batch.tokens_of(i)] for i in order]),
        supervised=np.concatenate([batch.supervised[batch.tokens_of(i)] for i in order]),
        offsets=np.concatenate([[0], np.cumsum(batch.lengths[order])]),
        spans=spans,
    )
    check(grouper, reverse, order)


def test_an_empty_shard(bert, batch):
    scores = make_grouper(bert, dtype="bfloat16").score(batch.select(np.array([], dtype=np.int64)))
    assert scores.columns["llmlingua2"].shape == (0,)
    assert make_grouper(bert).report({})["share_without_overlap"] == 0.0


def test_a_renamed_copy_is_the_same_compressor(directory, batch, tmp_path):
    """Also under a name that would mislead a rule that goes by names."""
    grouper = make_grouper(directory)
    other = "xlm-roberta-large" if "bert" in grouper.compressor().model.config.model_type else "bert-base"
    copy = make_grouper(shutil.copytree(directory, tmp_path / other))
    assert copy.parameters["compressor_revision"] == grouper.parameters["compressor_revision"]
    np.testing.assert_array_equal(copy.score(batch).columns["llmlingua2"], grouper.score(batch).columns["llmlingua2"])


def test_below_float32_flips_are_counted_on_a_sample(bert, batch, monkeypatch):
    monkeypatch.setattr(llmlingua2, "SAMPLE_ROWS", 3)
    monkeypatch.setattr(llmlingua2, "SAMPLE_ONE_IN", 2)
    low, exact = make_grouper(bert, dtype="bfloat16"), make_grouper(bert)
    result = low.score(batch)
    assert "flips_0.5" not in exact.score(batch).counters
    chosen = [i for i in range(len(batch)) if i < 3 or llmlingua2._hash(batch.document_ids[i]) % 2 == 0]
    assert 5 < len(chosen) < len(batch)
    assert result.counters["sampled_documents"] == len(chosen)
    assert result.counters["sampled_tokens"] == sum(batch.supervised[batch.tokens_of(i)].sum() for i in chosen)
    sample = batch.select(np.array(chosen))
    true = exact.score(sample).columns["llmlingua2"]
    total = 0
    for eta in (0.5, 0.7, 0.9):
        flips = 0
        for place, i in enumerate(chosen):
            own, supervised = result.columns["llmlingua2"][batch.tokens_of(i)], batch.supervised[batch.tokens_of(i)]
            found = important_tokens(own, supervised, eta).important
            flips += (found != important_tokens(true[sample.tokens_of(place)], supervised, eta).important).sum()
        assert result.counters[f"flips_{eta}"] == flips
        total += flips
    assert total > 0
    report = low.report(result.counters)
    expected = result.counters["flips_0.5"] / result.counters["sampled_tokens"]
    assert report["share_in_another_group_than_in_float32"]["eta=0.5"] == pytest.approx(expected)
    assert expected < 0.2
    # The same sample whatever the shards.
    parts = [low.score(batch.select(np.array(half))).counters for half in (range(10), range(10, len(batch)))]
    for name in ("sampled_documents", "sampled_tokens", "chunks", "supervised_without_overlap"):
        assert sum(part[name] for part in parts) == result.counters[name]


def test_report(bert, batch):
    grouper = make_grouper(bert)
    counters = grouper.score(batch).counters
    report = grouper.report(counters)
    assert report["compressor_model"] == str(bert)
    assert report["compressor_revision"].startswith("sha256:")
    assert report["dtype"] == "float32"
    assert report["chunks"] == grouper.compressor().word_probabilities(batch.texts).num_chunks.sum() > len(batch)
    assert 0 < report["share_without_overlap"] < 0.5
    assert json.loads(json.dumps(report)) == report


def test_a_grouper_travels_without_its_model_and_is_rebuilt_from_its_parameters(bert, batch):
    grouper = make_grouper(bert, package_parity=True)
    expected = grouper.score(batch).columns["llmlingua2"]
    travelled = pickle.dumps(grouper)
    assert len(travelled) < 5000
    np.testing.assert_array_equal(pickle.loads(travelled).score(batch).columns["llmlingua2"], expected)
    parameters = json.loads(json.dumps(grouper.parameters))
    rebuilt = grouper_class("llmlingua2").from_parameters(parameters, GrouperOptions(device="cpu"))
    assert rebuilt.parameters == grouper.parameters
    np.testing.assert_array_equal(rebuilt.score(batch).columns["llmlingua2"], expected)


def test_the_model_is_loaded_once(bert, batch):
    grouper = make_grouper(bert)
    assert grouper.compressor() is grouper.compressor()


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_changed_files_under_the_same_path_are_another_compressor(bert, tmp_path, file):
    copy = shutil.copytree(bert, tmp_path / "copy")
    grouper = make_grouper(copy)
    if file == "model.safetensors":
        weights = load_file(copy / file)
        weights["classifier.bias"] += 1.0
        save_file(weights, copy / file, metadata={"format": "pt"})
    else:
        (copy / file).write_text((copy / file).read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert make_grouper(copy).parameters != grouper.parameters
    with pytest.raises(UserError, match="has changed"):
        grouper_class("llmlingua2").from_parameters(grouper.parameters, GrouperOptions(device="cpu"))


def test_scores_that_are_not_finite_reject_the_document(bert, batch, tmp_path):
    copy = shutil.copytree(bert, tmp_path / "copy")
    weights = load_file(copy / "model.safetensors")
    row = small_tokenizer("bert").convert_tokens_to_ids("x")
    weights["bert.embeddings.word_embeddings.weight"][row] = float("nan")
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    result = make_grouper(copy).score(batch)
    assert 0 < len(result.rejects) < len(batch)
    for document, reason in result.rejects.items():
        assert batch.document_ids[document] in reason
    # A neighbour in the same batch of the model is as it was.
    kept = ~np.isin(batch.document_index, list(result.rejects))
    expected = make_grouper(bert).score(batch).columns["llmlingua2"]
    np.testing.assert_allclose(result.columns["llmlingua2"][kept], expected[kept], rtol=0, atol=1e-5)
    assert np.isfinite(result.columns["llmlingua2"]).all()


def broken(bert, tmp_path, how):
    """Return a checkpoint that is wrong in one way, and what the error must say."""
    place = tmp_path / "checkpoint"
    if how == "absent directory":
        return tmp_path / "nowhere", "no such directory"
    if how == "hub out of reach":
        return "someone/some-compressor", "give a local directory"
    if how == "causal language model":
        LlamaForCausalLM(
            LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
        ).save_pretrained(place)
        return place, "expected a token classifier.*found LlamaForCausalLM"
    if how == "sequence classifier":
        config = AutoConfig.from_pretrained(bert)
        BertForSequenceClassification(config).save_pretrained(place)
        return place, "expected a token classifier.*found BertForSequenceClassification"
    tokenizer = small_tokenizer("bert")
    if how == "three labels":
        return save_compressor(place, "bert", tokenizer, num_labels=3), "2 labels.*found 3"
    if how == "few positions":
        return save_compressor(place, "bert", tokenizer, max_position_embeddings=256), "512 positions.*found 256"
    if how == "few positions, counted from the padding id":
        save_compressor(place, "xlm-roberta", small_tokenizer("xlm-roberta"), max_position_embeddings=512)
        return place, "512 positions.*found 510"
    shutil.copytree(bert, place)
    if how == "no config":
        (place / "config.json").unlink()
        return place, "no config.json"
    if how == "no weights":
        (place / "model.safetensors").unlink()
        return place, "no weight files"
    if how == "no tokenizer":
        (place / "tokenizer.json").unlink()
        return place, "no tokenizer files"
    if how == "foreign tokenizer":
        small_tokenizer("xlm-roberta").save_pretrained(place)
        config = BertConfig.from_pretrained(place)
        config.vocab_size = 100
        config.save_pretrained(place)
        return place, "do not belong together"
    if how == "slow tokenizer":
        (place / "tokenizer.json").rename(place / "vocab.old")
        CanineTokenizer().save_pretrained(place)
        return place, "fast tokenizer"
    if how == "byte-level tokenizer":
        backend = Tokenizer(models.BPE({"a": 0}, []))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel()
        (place / "tokenizer_config.json").unlink()
        PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(place)
        return place, "WordPiece.*SentencePiece.*found BPE"
    raise AssertionError(how)


@pytest.mark.parametrize(
    "how",
    [
        "absent directory",
        "hub out of reach",
        "causal language model",
        "sequence classifier",
        "three labels",
        "few positions",
        "few positions, counted from the padding id",
        "no config",
        "no weights",
        "no tokenizer",
        "foreign tokenizer",
        "slow tokenizer",
        "byte-level tokenizer",
    ],
)
def test_a_wrong_checkpoint_is_refused_before_any_work(bert, tmp_path, how):
    place, message = broken(bert, tmp_path, how)
    with pytest.raises(UserError, match=f"(?s){place}.*{message}"):
        make_grouper(place)


def test_a_checkpoint_without_its_classifier_is_refused(bert, batch, tmp_path):
    """transformers would fill the classifier with random numbers."""
    copy = shutil.copytree(bert, tmp_path / "copy")
    weights = load_file(copy / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if not name.startswith("classifier")}
    save_file(kept, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"weights are missing.*classifier"):
        make_grouper(copy).score(batch)


@pytest.mark.parametrize(("setting", "value"), [("batch_tokens", 0), ("dtype", "int8"), ("device", "gpu")])
def test_wrong_settings(bert, setting, value):
    with pytest.raises(UserError, match=f"--{setting.replace('_', '-')} {value}"):
        grouper_class("llmlingua2").from_options(replace(options(bert), **{setting: value}))
