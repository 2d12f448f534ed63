"""What adding columns to finished shards costs, over reading and writing the same shards alone.

Run: python -m tests.benchmarks.columns --shards DIR [--runs 3]

DIR is a complete shard directory with a column `tfidf` and no other; it is copied. The sides alternate, in one process,
on as many threads as the local engine takes: `annotate run --grouper random [--grouper frequency] --out COPY`, without
the source; and each shard read whole and written again.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console

from annotate.run.pipeline import run
from annotate.run.settings import Settings
from common.shards import ShardDirectory, read_table, write_shard


def read_and_write(copy: Path) -> None:
    """Read and write every shard."""
    directory = ShardDirectory(copy, verify=False)
    (copy / "again").mkdir()

    def one(file: str) -> None:
        write_shard(copy / "again" / file, read_table(copy / file), supervised_tokens=0)

    with ThreadPoolExecutor(max(2, os.cpu_count() or 1)) as pool:
        list(pool.map(one, [shard.file for shard in directory.manifest.shards]))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    sides: dict[str, list[tuple[float, float]]] = {"random": [], "random + frequency": [], "read and write": []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.runs + 1):
            for side, taken in sides.items():
                copy = Path(folder) / f"{number} {side}"
                shutil.copytree(arguments.shards, copy)
                started, used = time.perf_counter(), time.process_time()
                if side == "read and write":
                    read_and_write(copy)
                else:
                    settings = Settings(None, tuple(side.split(" + ")), copy, engine="local")
                    run(settings, Console(quiet=True))
                if number:  # the first round imports
                    taken.append((time.perf_counter() - started, time.process_time() - used))
                shutil.rmtree(copy)
    alone = [statistics.median(values) for values in zip(*sides["read and write"], strict=True)]
    for side, taken in sides.items():
        wall, used = (statistics.median(values) for values in zip(*taken, strict=True))
        print(
            f"{side}: {wall:.2f} s, {wall / alone[0]:.2f} x reading and writing (wanted: at most 2); "
            f"{used:.2f} s of processor time, {used / alone[1]:.2f} x"
        )


if __name__ == "__main__":
    main()
