"""How fast annotation is, and how much memory it takes, as ratios within one run.

Run: python -m tests.benchmarks.annotate --data path/to/alpaca.json --tokenizer path/to/llama-3 [--runs 3]

Measured, as medians over runs that alternate:
1. the local engine's wall time, imports left out, over tokenizing the same texts with the same fast tokenizer alone;
2. tf-idf scoring against scikit-learn's TfidfVectorizer with a per-token look-up;
3. the command's peak memory with 4 times the rows, by repetition;
4. the time of `--help`.
"""

import argparse
import json
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from rich.console import Console

from annotate.groupers.base import GrouperOptions
from annotate.groupers.tfidf import Tfidf
from annotate.run.pipeline import run
from annotate.run.settings import Settings
from annotate.run.tables import from_table
from annotate.tokens.target import load_target, load_tokenizer


def seconds(function) -> float:
    """Return the wall time of a call."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def annotate_once(data: Path, tokenizer: str, out: Path) -> None:
    """Annotate with the local engine into a fresh directory."""
    shutil.rmtree(out, ignore_errors=True)
    run(
        Settings(data=str(data), groupers=("tfidf",), out=out, engine="local", tokenizer=tokenizer), Console(quiet=True)
    )


def annotation_against_tokenizing(data: Path, tokenizer_name: str, work: Path, runs: int) -> None:
    """(1) The whole local run, loading the tokenizer included, against the tokenizer alone, loaded already."""
    annotate_once(data, tokenizer_name, work / "shards")
    texts = pq.read_table(sorted((work / "shards").glob("part-*")), columns=["text"])["text"].to_pylist()
    tokenizer = load_tokenizer(tokenizer_name)
    tokenizer(texts)
    ours, alone = [], []
    for _ in range(runs):
        load_target.cache_clear()
        ours.append(seconds(lambda: annotate_once(data, tokenizer_name, work / "shards")))
        alone.append(seconds(lambda: tokenizer(texts)))
    a, b = statistics.median(ours), statistics.median(alone)
    print(f"1. local engine {a:.2f} s, tokenizing the same {len(texts):,} texts alone {b:.2f} s")
    print(f"   ratio {a / b:.2f} (wanted: at most 1.8)")


def scoring_against_scikit_learn(work: Path, runs: int) -> None:
    """(2) Fit and score the documents of all shards."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    batches = [from_table(pq.read_table(path)) for path in sorted((work / "shards").glob("part-*"))]
    documents = [b.input_ids[b.tokens_of(i)].tolist() for b in batches for i in range(len(b))]

    def ours() -> np.ndarray:
        grouper = Tfidf.from_options(GrouperOptions())
        counts = [grouper.count(batch) for batch in batches]
        width = max(count["document_frequency"].size for count in counts)
        frequency = sum(np.pad(c["document_frequency"], (0, width - c["document_frequency"].size)) for c in counts)
        grouper.fit({"document_frequency": frequency, "num_documents": sum(c["num_documents"] for c in counts)})
        return np.concatenate([grouper.score(batch).columns["tfidf"] for batch in batches])

    def theirs() -> np.ndarray:
        vectorizer = TfidfVectorizer(analyzer=lambda document: document)
        matrix = vectorizer.fit_transform(documents)
        scores = []
        for row, document in enumerate(documents):
            start, end = matrix.indptr[row], matrix.indptr[row + 1]
            values = dict(zip(matrix.indices[start:end].tolist(), matrix.data[start:end].tolist(), strict=True))
            scores += [values[vectorizer.vocabulary_[token]] for token in document]
        return np.array(scores)

    np.testing.assert_allclose(ours(), theirs(), atol=1e-6, rtol=0)
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(runs)]
    a, b = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"2. tf-idf {a:.2f} s, scikit-learn with look-up {b:.2f} s: {b / a:.1f} times as fast (wanted: at least 5)")


def memory_over_shards(data: Path, tokenizer: str, work: Path, engine: str) -> None:
    """(3) Peak resident memory of the command's process, which reads the source and holds the counts."""
    records = json.loads(data.read_text(encoding="utf-8"))
    peaks = []
    for times in (1, 4):
        path = work / f"times{times}.jsonl"
        with open(path, "w", encoding="utf-8") as file:
            for _ in range(times):
                file.writelines(json.dumps(record) + "\n" for record in records)
        out = work / f"times{times}"
        command = [sys.executable, "-m", "annotate.cli", "run", "--data", str(path), "--tokenizer", tokenizer]
        code = (
            "import resource, subprocess, sys\n"
            f"subprocess.run({[*command, '--engine', engine, '--out', str(out)]!r}, check=True, capture_output=True)\n"
            "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
        )
        result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        peaks.append(int(result.stdout) / 1024)
    print(
        f"3. --engine {engine}: peak {peaks[0]:,.0f} MiB, with 4 times the rows {peaks[1]:,.0f} MiB: "
        f"ratio {peaks[1] / peaks[0]:.2f} (wanted: at most 1.2)"
    )


def help_time(runs: int) -> None:
    """(4) The time to print `--help`, in a fresh process."""
    for command in ("annotate", "train"):
        call = [
            sys.executable,
            "-c",
            f"import sys; sys.argv=['{command}', '--help']; from {command}.cli import main; main()",
        ]
        subprocess.run(call, capture_output=True, check=True)
        taken = statistics.median(
            seconds(lambda call=call: subprocess.run(call, capture_output=True, check=True)) for _ in range(2 * runs)
        )
        print(f"4. {command} --help {taken:.2f} s (wanted: under 1.0 s)")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a JSON array of records, such as Alpaca's")
    parser.add_argument("--tokenizer", required=True, help="a fast tokenizer's directory or hub id")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        annotation_against_tokenizing(arguments.data, arguments.tokenizer, work, arguments.runs)
        scoring_against_scikit_learn(work, arguments.runs)
        for engine in ("local", "ray"):
            memory_over_shards(arguments.data, arguments.tokenizer, work, engine)
        help_time(arguments.runs)


if __name__ == "__main__":
    main()
