"""Fixtures that several packages' tests share. No test needs the network."""

import os
from pathlib import Path

import pytest

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
