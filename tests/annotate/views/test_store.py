"""`annotate inspect` of shards on a real S3 server prints what it prints of the same shards on a disk."""

from pathlib import Path

from rich.console import Console
from typer.testing import CliRunner

from annotate.cli import app
from annotate.run.pipeline import run
from annotate.run.settings import Settings
from tests.stores import upload


def test_inspect_reads_urls(tmp_path, s3, sample_tokenizer):
    out = tmp_path / "sample"
    tokenizer = upload(Path(sample_tokenizer), f"{s3}/tokenizer")  # by URL, too
    settings = Settings(data="sample", groupers=("tfidf",), out=out, tokenizer=tokenizer, limit=20, engine="local")
    run(settings, Console(quiet=True))
    url = upload(out, f"{s3}/sample")
    here, there = (CliRunner().invoke(app, ["inspect", place, "--document", "3"]) for place in (str(out), url))
    assert here.exit_code == there.exit_code == 0, there.output
    assert there.output == here.output
    assert "tokenizer" in there.output
