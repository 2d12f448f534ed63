"""llmlingua2 through `annotate run`: the same shards from both engines; and every real document for Llama 3."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from annotate.groupers.base import GrouperOptions
from annotate.groupers.llmlingua2.alignment import align
from annotate.groupers.llmlingua2.checkpoint import Checkpoint
from annotate.groupers.llmlingua2.model import Compressor
from annotate.run.pipeline import run
from annotate.run.settings import Settings
from annotate.tokens.target import TargetTokenizer
from annotate.tokens.templates import Segment
from common.errors import UserError
from common.files import sha256_file
from common.shards import column_kinds
from tests.annotate.groupers.llmlingua2.compressor_checkpoints import TRAIN, save_compressor, small_tokenizer


def annotate(compressor, out, **settings):
    options = GrouperOptions(compressor_model=str(compressor), **settings.pop("options", {}))
    values = {"data": "sample", "groupers": ("llmlingua2",), "engine": "local", "rows_per_shard": 100, **settings}
    return run(Settings(out=out, options=options, **values), Console(quiet=True))


def test_shards_and_manifest(tmp_path):
    compressor = save_compressor(tmp_path / "model", "xlm-roberta", small_tokenizer("xlm-roberta"))
    annotate(compressor, tmp_path / "out", limit=60, options={"dtype": "bfloat16"})
    table = pq.read_table(sorted((tmp_path / "out").glob("part-*.parquet")))
    assert column_kinds(table.schema) == {"llmlingua2": "importance"}
    scores = table["llmlingua2"].combine_chunks().flatten().to_numpy()
    assert np.isfinite(scores).all()
    assert np.ptp(scores) > 0.5
    (grouper,) = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))["groupers"]
    assert grouper["parameters"]["compressor_revision"].startswith("sha256:")
    assert grouper["parameters"]["dtype"] == grouper["report"]["dtype"] == "bfloat16"
    assert grouper["report"]["chunks"] >= table.num_rows
    assert 0 < grouper["report"]["share_without_overlap"] < 0.5
    assert grouper["report"]["sampled_documents"] >= 8
    shares = grouper["report"]["share_in_another_group_than_in_float32"]
    assert list(shares) == ["eta=0.5", "eta=0.7", "eta=0.9"]
    assert all(0 <= share < 0.2 for share in shares.values())
    # The other tokenizer family in the same directory: other parameters, refused.
    other = save_compressor(tmp_path / "other", "bert", small_tokenizer("bert"))
    with pytest.raises(UserError, match="compressor_model"):
        annotate(other, tmp_path / "out", limit=60, options={"dtype": "bfloat16"})


@pytest.mark.slow
def test_ray_and_local_give_the_same_bytes(tmp_path):
    import ray

    compressor = save_compressor(tmp_path / "model", "bert", small_tokenizer("bert"))
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    try:
        for engine in ("local", "ray"):
            annotate(compressor, tmp_path / engine, engine=engine)
    finally:
        ray.shutdown()
    local, with_ray = (
        {path.name: sha256_file(path) for path in (tmp_path / engine).glob("part-*.parquet")}
        for engine in ("local", "ray")
    )
    assert len(local) == 4
    assert with_ray == local


@pytest.mark.slow
@pytest.mark.parametrize("family", TRAIN)
def test_every_alpaca_and_lima_document_on_llama_3(family, shared, tmp_path):
    """Every token gets a finite score, and only tokens without a visible character may miss all words."""
    records = [
        record
        for name in ("alpaca", "lima")
        for record in json.loads((shared / "data" / f"{name}.json").read_text(encoding="utf-8"))
    ]
    texts = [(f"User: {r['instruction']} {r.get('input', '')}\nAssistant: ", r["output"]) for r in records]
    assert len(texts) == 17_387 + 1_029
    tokenizer = TRAIN[family]([prompt + response for prompt, response in texts[::20]], 4000)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    compressor = Compressor(Checkpoint.find(str(save_compressor(tmp_path / "model", family, tokenizer, **size))))
    target = TargetTokenizer(str(shared / "tokenizers" / "llama-3"))
    num_tokens = num_missed = 0
    for start in range(0, len(texts), 2000):
        part = texts[start : start + 2000]
        documents = [[Segment(prompt, False), Segment(response, True)] for prompt, response in part]
        names = [str(start + i) for i in range(len(part))]
        batch = target.tokenize(documents, names, range(len(part)), 1 << 20, with_spans=True).batch
        words = compressor.word_probabilities(batch.texts)
        owners = batch.document_index
        found = align(batch.texts, batch.spans, owners, words.spans, words.documents, words.probabilities)
        assert found.scores.shape == (batch.num_tokens,)
        assert np.isfinite(found.scores).all()
        assert ((found.scores > 0) == found.covered).all()
        for token in np.flatnonzero(~found.covered):
            first, end = batch.spans[token]
            own = batch.texts[owners[token]][first:end]
            assert not any(character.isprintable() and not character.isspace() for character in own), own
        num_tokens += batch.num_tokens
        num_missed += int((~found.covered).sum())
    assert num_tokens > 2_000_000
    assert num_missed / num_tokens < 0.05
