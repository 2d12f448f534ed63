"""How busy a GPU is kept, with the forward pass replaced by a clock. No GPU is needed.

Run: python -m tests.benchmarks.gpu_feed --data path/to/alpaca.json --tokenizer path/to/llama-3 [--rates 0.6e6 2e6]

The scoring stage of a worker with a GPU, as the engines run it: shards are read, scored and written by GPU_THREADS
threads, of which one at a time has the clock, for as long as a GPU of that speed takes for its tokens. The shards'
tokens are there before, as if four CPU cores made them beside it. Printed: the share of the time that the clock ran,
and the same with one thread, as before; and the processor time that reading and writing took a token.
"""

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console

from annotate.groupers.random import Random
from annotate.run import workspace
from annotate.run.engines import local
from annotate.run.engines.local import LocalEngine
from annotate.run.pipeline import run
from annotate.run.scoring import Score, ToScore
from annotate.run.settings import Settings
from annotate.run.tables import from_table, write_tokens
from annotate.tokens.batch import Scores, TokenBatch
from common.shards import ShardDirectory, read_table
from common.storage import locate


class Clock(Random):
    """A grouper whose model is a clock: one shard at a time, `tokens / rate` seconds each."""

    uses_model = True

    def __init__(self, rate: float):
        super().__init__(0)
        self.rate = rate
        self.busy_s = 0.0
        self.first = self.last = 0.0

    def score(self, batch: TokenBatch) -> Scores:
        """Take the GPU's time; the scores are zeros."""
        started = time.perf_counter()
        self.first = self.first or started
        time.sleep(batch.num_tokens / self.rate)
        self.last = time.perf_counter()
        self.busy_s += batch.num_tokens / self.rate
        return Scores({self.name: np.zeros(batch.num_tokens, dtype=np.float32)})


def measure(shards: list[TokenBatch], rate: float, threads: int, work: Path) -> tuple[float, float]:
    """Score shards; return the clock's share of the time from its first start to its last end, and CPU s/token."""
    out = locate(work / "out")
    out.delete_tree()
    space = workspace.Workspace(out, beside=False)
    facts = {"with_spans": False, "source_rows": 0, "truncated": 0, "rejects": []}
    for index, batch in enumerate(shards):
        write_tokens(space.tokens(index), batch, {**facts, "source_rows": len(batch), "counters": {}})
    engine, clock = LocalEngine(), Clock(rate)
    engine.__dict__["device"] = "cuda"
    local.GPU_THREADS = threads
    stage = Score(space, {"random": "importance"}, (clock,), ("", None))
    before = time.process_time()
    for _ in engine.map(stage, (ToScore(index) for index in range(len(shards))), uses_model=True):
        pass
    used = time.process_time() - before
    return clock.busy_s / (clock.last - clock.first), used / sum(batch.num_tokens for batch in shards)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a file of records, such as Alpaca's")
    parser.add_argument("--tokenizer", required=True, help="a fast tokenizer's directory or hub id")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.6e6, 2e6], help="tokens a second of the GPU")
    parser.add_argument("--shards", type=int, default=40)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder) / "first"
        settings = Settings(str(arguments.data), ("random",), first, arguments.tokenizer, engine="local")
        run(settings, Console(quiet=True))
        directory = ShardDirectory(first)
        held = [from_table(read_table(first / shard.file)) for shard in directory.manifest.shards]
        shards = [held[number % len(held)] for number in range(arguments.shards)]
        shutil.rmtree(first)
        threads_kept = local.GPU_THREADS
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {len(shards)} shards")
        for rate in arguments.rates:
            for threads in (1, threads_kept):
                busy, cpu = measure(shards, rate, threads, Path(folder))
                label = f"{rate / 1e6:.1f} M tokens/s, {threads} threads"
                print(f"{label}: busy {busy:.0%}, {1e9 * cpu:.0f} ns of CPU a token")


if __name__ == "__main__":
    main()
