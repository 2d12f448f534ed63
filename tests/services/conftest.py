"""Shards of every grouper over the shipped sample, and servers that score with them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from annotate.groupers.base import GrouperOptions
from annotate.run.pipeline import run
from annotate.run.settings import Settings
from annotate.tokens.target import load_tokenizer
from tests.annotate.groupers.llmlingua2.compressor_checkpoints import save_compressor, small_tokenizer
from tests.annotate.groupers.rho1.rho1_models import save_checkpoint
from tests.services.running import Server

GROUPERS = ("tfidf", "frequency", "random", "llmlingua2", "rho1")
COLUMNS = (*GROUPERS, "rho1_excess")
DOCUMENTS = 200


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory, sample_tokenizer: Path) -> GrouperOptions:
    """A tiny compressor, a tiny reference model and a tiny base model."""
    home = tmp_path_factory.mktemp("models")
    tokenizer = load_tokenizer(str(sample_tokenizer))
    size = {"vocabulary": len(tokenizer), "max_position_embeddings": 4096}
    return GrouperOptions(
        compressor_model=str(save_compressor(home / "compressor", "bert", small_tokenizer("bert"))),
        reference_model=save_checkpoint(home / "reference", tokenizer=tokenizer, **size),
        base_model=save_checkpoint(home / "base", seed=1, tokenizer=tokenizer, **size),
        dtype="float32",
        device="cpu",
    )


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory, sample_tokenizer: Path, models: GrouperOptions) -> Path:
    """The first sample records, annotated by every grouper."""
    out = tmp_path_factory.mktemp("shards") / "sample"
    settings = Settings(
        data="sample",
        groupers=GROUPERS,
        out=out,
        tokenizer=str(sample_tokenizer),
        limit=DOCUMENTS,
        rows_per_shard=64,
        engine="local",
        options=models,
    )
    run(settings, Console(quiet=True))
    return out


@pytest.fixture(scope="session")
def server(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of these shards, for all tests that leave it as it was."""
    with Server(tmp_path_factory.mktemp("server") / "log", "--state", shards) as running:
        yield running.wait()
        assert running.process.poll() is None, running.logged()
