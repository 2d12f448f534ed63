"""Small shard directories over a small byte-level tokenizer, made with the project's own contracts."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from common.manifest import TOKENIZER_NAME, Counts, GrouperInfo, Manifest, SourceInfo, TokenizerInfo
from common.shards import shard_name, shard_schema, write_shard
from common.tokenizers import tokenizer_fingerprint

COLUMNS = {"first": "importance", "second": "importance", "reference": "reference_loss"}


def build_tokenizer(merges_from: str = "the cat sat on the mat and then the dog ran away"):
    """Return a byte-level BPE tokenizer of about 280 entries."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([merges_from] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="session")
def tokenizer():
    return build_tokenizer()


def write_shards(
    path: Path,
    tokenizer,
    num_documents: int = 24,
    columns: dict | None = None,
    seed: int = 0,
    rows_per_shard: int = 10,
    documents: list[dict] | None = None,
    max_length: int = 64,
) -> Path:
    """Write a complete shard directory of random documents of uneven lengths; the first part is never supervised."""
    columns = {"first": "importance"} if columns is None else columns
    rng = np.random.default_rng(seed)
    if documents is None:
        documents = []
        for _ in range(num_documents):
            length, prompt = int(rng.integers(8, 40)), int(rng.integers(1, 6))
            documents.append(
                {
                    "input_ids": rng.integers(2, len(tokenizer), length).tolist(),
                    "supervised": [False] * prompt + [True] * (length - prompt),
                    **{name: rng.random(length).astype(np.float32).tolist() for name in columns},
                }
            )
    path.mkdir(parents=True)
    tokenizer.save_pretrained(path / TOKENIZER_NAME)
    schema = shard_schema(columns)
    shards = []
    for start in range(0, len(documents), rows_per_shard):
        rows = [
            {"document_id": f"d{start + index}", "source_row": start + index, "text": "", **document}
            for index, document in enumerate(documents[start : start + rows_per_shard])
        ]
        table = pa.Table.from_pylist(rows, schema=schema)
        supervised = sum(sum(row["supervised"]) for row in rows)
        shards.append(write_shard(path / shard_name(len(shards)), table, supervised))
    tokens = sum(shard.tokens for shard in shards)
    Manifest(
        source=SourceInfo("test", "test", None, "0" * 64, "text", None),
        template="plain",
        tokenizer=TokenizerInfo("test", None, tokenizer_fingerprint(tokenizer)),
        max_length=max_length,
        rows_per_shard=rows_per_shard,
        groupers=[GrouperInfo(name, {}, {name: kind}) for name, kind in columns.items()],
        counts=Counts(len(documents), tokens, sum(shard.supervised_tokens for shard in shards), 0, {}),
        shards=shards,
    ).save(path)
    return path


@pytest.fixture
def shards(tmp_path, tokenizer):
    return write_shards(tmp_path / "shards", tokenizer)


@pytest.fixture
def all_shards(tmp_path, tokenizer):
    return write_shards(tmp_path / "all_shards", tokenizer, columns=COLUMNS)
