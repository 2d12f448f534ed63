"""What the driver of a Ray run holds and does, over the number of rows. Every record is another one.

Run: python -m tests.benchmarks.driver [--rows 100000 1600000] [--rows-per-shard 1000]

For each number of rows, in a process of its own: the driver's peak resident memory, its processor time a shard in the
stages (from the first range that is scanned to the manifest), and the wall time a row.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from annotate.run import job
from annotate.run.pipeline import run
from annotate.run.settings import Settings


def one(path: Path, out: Path, rows_per_shard: int) -> dict[str, float]:
    """Annotate a file by Ray in this process, which is the driver."""
    used: list[float] = []
    do = job.Job.do

    def timed(self: job.Job, *arguments: object) -> job.Outcome:
        before, started = time.process_time(), time.perf_counter()
        outcome = do(self, *arguments)  # type: ignore[arg-type]
        used.extend([time.process_time() - before, time.perf_counter() - started])
        return outcome

    job.Job.do = timed  # type: ignore[method-assign, assignment]
    tokenizer = str(Path(job.__file__).parents[1] / "sample" / "tokenizer")
    settings = Settings(str(path), ("tfidf",), out, tokenizer, rows_per_shard=rows_per_shard, engine="ray")
    summary = run(settings, Console(quiet=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"shards": len(summary.manifest.shards), "peak_mib": peak, "cpu_s": used[0], "wall_s": used[1]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_600_000])
    parser.add_argument("--rows-per-shard", type=int, default=1000)
    parser.add_argument("--one", type=Path, nargs=2, default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(*arguments.one, arguments.rows_per_shard)))
        return
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "x.jsonl"
            with open(path, "w", encoding="utf-8") as file:
                for row in range(rows):
                    file.write(json.dumps({"text": f"record {row} of {rows}: {row * 7919}"}) + "\n")
            words = [sys.executable, "-m", "tests.benchmarks.driver"]
            words += ["--rows-per-shard", str(arguments.rows_per_shard), "--one", str(path), str(Path(folder) / "out")]
            found = json.loads(
                subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
            )
        print(
            f"{rows:,} rows, {found['shards']:,.0f} shards: driver's peak {found['peak_mib']:,.0f} MiB, "
            f"{1000 * found['cpu_s'] / found['shards']:.2f} ms of its CPU a shard, "
            f"{1e6 * found['wall_s'] / rows:.0f} us a row",
            flush=True,
        )


if __name__ == "__main__":
    main()
