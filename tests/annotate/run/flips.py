"""Random bytes of a shard directory are changed; verify has to name each file, and --repair to mend what can be made.

    python -m tests.annotate.run.flips --trials 500

What enters: the number of trials and a seed. What leaves: one line for every outcome with its count, and an error at
the first trial in which a file was not named, was named wrongly, or a repaired directory differs from the whole one in
a byte. Each trial changes one byte of one file, every fourth one of several; every third has no source to mend from.
"""

import argparse
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from rich.console import Console

from annotate.records.sources import SAMPLE_PATH, SAMPLE_TOKENIZER
from annotate.run.pipeline import run
from annotate.run.repairs import repair
from annotate.run.settings import Settings
from annotate.run.verification import examine
from common.errors import UserError
from common.manifest import COPY_NAME, MANIFEST_NAME

MANIFESTS = {MANIFEST_NAME, COPY_NAME}


def make(folder: Path) -> Path:
    """Annotate a part of the sample: three shards, two fits, one reject."""
    lines = SAMPLE_PATH.read_text(encoding="utf-8").splitlines()[:60]
    (folder / "data.jsonl").write_text("\n".join([*lines, '{"instruction": "q", "output": ""}']) + "\n")
    groupers = ("tfidf", "frequency", "random")
    data, tokenizer = str(folder / "data.jsonl"), str(SAMPLE_TOKENIZER)
    settings = Settings(data, groupers, folder / "shards", tokenizer=tokenizer, engine="local", rows_per_shard=25)
    run(settings, Console(quiet=True))
    return folder / "shards"


def content(directory: Path) -> dict[str, bytes]:
    """Return every file's bytes."""
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def change(path: Path, random: np.random.Generator) -> None:
    """Change one byte."""
    data = bytearray(path.read_bytes())
    data[random.integers(len(data))] ^= random.integers(1, 256)
    path.write_bytes(data)


def choose(whole: dict[str, bytes], count: int, random: np.random.Generator) -> set[str]:
    """Choose files: each as likely as the others in half of the trials, else in proportion to its bytes."""
    sizes = np.array([len(data) for data in whole.values()], dtype=float)
    weights = sizes / sizes.sum() if random.random() < 0.5 else None
    return set(random.choice(list(whole), count, replace=False, p=weights).tolist())


def attempt(directory: Path, whole: dict[str, bytes], number: int, seed: int) -> list[str]:
    """Do one trial; return what happened, and leave the directory whole.

    Raises:
        AssertionError: damage was not named, or a repair made other bytes.
    """
    random = np.random.default_rng([seed, number])
    chosen = choose(whole, int(random.integers(2, 6)) if number % 4 == 3 else 1, random)
    source = directory.parent / "data.jsonl"
    has_source = number % 3 != 2
    for name in chosen:
        change(directory / name, random)
    if not has_source:
        source.rename(source.with_suffix(".away"))
    try:
        if not chosen >= MANIFESTS:  # with both damaged, nothing says what the files should be
            named = {item.file for item in examine(directory).damage}
            assert named == chosen, (number, named, chosen)
        else:
            with pytest.raises(UserError, match="damaged"):
                examine(directory)
        repairs = repair(directory)
        left = {item.file for item in examine(directory).damage}
    finally:
        if not has_source:
            source.with_suffix(".away").rename(source)
    needs_source = {name for name in chosen if name.startswith(("part-", "rejects"))}
    if any(name.startswith("part-") for name in chosen):
        needs_source |= {name for name in chosen if name.startswith("state")}
    expected = set() if has_source else needs_source
    assert left == expected, (number, left, expected)
    assert len(repairs.left) == len(left), (number, repairs.left)
    now = content(directory)
    for name, data in whole.items():
        assert (now.get(name) == data) != (name in left), (number, name)
        (directory / name).write_bytes(data)
    assert set(now) == set(whole), (number, set(now) ^ set(whole))
    return [f"{name}: {'said that it needs the source' if name in left else 'mended'}" for name in sorted(chosen)]


def main() -> None:
    """Run the trials and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    outcomes: Counter[str] = Counter()
    started = time.monotonic()
    with TemporaryDirectory() as folder:
        directory = make(Path(folder))
        whole = content(directory)
        for number in range(arguments.trials):
            outcomes.update(attempt(directory, whole, number, arguments.seed))
    for outcome, count in sorted(outcomes.items()):
        print(f"{count:5} {outcome}")
    seconds = time.monotonic() - started
    print(f"{arguments.trials} trials, {sum(outcomes.values())} files, every one named, {seconds:.0f} s")


if __name__ == "__main__":
    main()
