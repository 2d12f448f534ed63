"""A small checkpoint, and benchmark items of its own, for evaluations that take seconds."""

import json
from pathlib import Path

import pytest

from tests.train.runs import small_model
from train.evaluation.local_data import DATA_HOME

WORDS = ["the", "cat", "sat", "on", "the", "mat", "and", "then", "the", "dog", "ran", "away"]


def write_items(home: Path) -> None:
    """Write eight ARC, six OpenBookQA and ten MMLU items of nonsense that differ from each other."""
    rows = {"arc_challenge": [], "openbookqa": []}
    for number in range(14):
        choices = [f"{WORDS[(number + k) % 12]} {WORDS[(3 * number + k) % 12]}"[: 5 + k] for k in range(4)]
        row = {"question": f"{WORDS[number % 12]} {number}?", "choices": choices, "label": number % 4}
        rows["arc_challenge" if number < 8 else "openbookqa"].append(row)
    subjects = [{**row, "subject": "anatomy" if n % 2 else "astronomy"} for n, row in enumerate(rows["arc_challenge"])]
    for name, content in {
        **{f"{k}/test": v for k, v in rows.items()},
        "mmlu/test": subjects,
        "mmlu/dev": subjects,
    }.items():
        path = home / "benchmarks" / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in content))


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    write_items(home)
    return home


@pytest.fixture
def data_home(home, monkeypatch):
    monkeypatch.setenv(DATA_HOME, str(home))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return home


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, tokenizer):
    path = tmp_path_factory.mktemp("checkpoint") / "model"
    small_model(tokenizer).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
