"""Fixtures that several packages' tests share. No test needs the network."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stores import BUCKET, environment_of, s3_server

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# The models of the tests are tiny: threads would only fight with those of the other test processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The directory with the real datasets and the real Llama 3 tokenizer, where there is one."""
    if not SHARED.is_dir():
        pytest.skip("needs the real data in ../shared (see its README), which is not part of this repository")
    return SHARED


@pytest.fixture(scope="session")
def sample_tokenizer() -> Path:
    """The shipped byte-level BPE tokenizer."""
    return ROOT / "annotate" / "sample" / "tokenizer"


@pytest.fixture(scope="session")
def sample_records() -> Path:
    """The shipped records."""
    return ROOT / "annotate" / "sample" / "records.jsonl"


@pytest.fixture(scope="session")
def s3_environment() -> Iterator[dict[str, str]]:
    """A real S3 server process, started for the tests that ask; the variables that lead there are set."""
    with s3_server() as values, environment_of(values):
        yield values


@pytest.fixture
def s3(s3_environment: dict[str, str], request: pytest.FixtureRequest) -> str:
    """A URL on the server that only this test uses."""
    return f"s3://{BUCKET}/{request.node.name.replace('[', '-').rstrip(']')}"
