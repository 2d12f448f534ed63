"""What the user sees while annotation runs: live bars on a terminal, plain lines elsewhere. All of it on stderr.

What enters: the shards that each stage finished, and how far the source was read. What leaves: nothing but the display.
"""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 5.0
STAGES = ("plan", "tokenize", "score")


class RunProgress:
    """Counts of a run, shown while it goes on. Units: source records, tokens of documents, seconds."""

    def __init__(self, console: Console, shards_done: int = 0):
        self.console = console
        self.shards_done = shards_done
        self.records = dict.fromkeys(STAGES, 0)
        self.tokens = dict.fromkeys(STAGES, 0)
        self.shards = dict.fromkeys(STAGES, 0)
        self.rejects = 0
        self.started = dict.fromkeys(STAGES, 0.0)
        self.total: int | None = None  # source records, once known or estimated
        self.last_line = time.monotonic()
        self.noted = ""
        self.bars: Progress | None = None
        if console.is_terminal:
            self.bars = Progress(
                TextColumn("{task.description:<9}"),
                BarColumn(bar_width=30),
                TaskProgressColumn(),
                TextColumn("{task.fields[numbers]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            self.tasks = {
                stage: self.bars.add_task(stage, total=None, numbers="", start=False) for stage in self.records
            }

    def __enter__(self) -> Self:
        if self.bars:
            self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bars:
            self.bars.stop()

    def start(self, stage: str) -> None:
        """Say that a stage begins."""
        self.started[stage] = self.started[stage] or time.monotonic()
        if self.bars:
            self.bars.start_task(self.tasks[stage])

    def advance(self, stage: str, records: int, documents: int, tokens: int, rejects: int, total: int | None) -> None:
        """Count one finished shard of a stage.

        Args:
            stage: "tokenize" or "score".
            records, documents, tokens, rejects: of this shard.
            total: source records of the whole stage, as far as known.
        """
        self.records[stage] += records
        self.tokens[stage] += tokens
        self.shards[stage] += 1
        if stage == "tokenize":
            self.rejects += rejects
        self.total = total
        elapsed = max(1e-9, time.monotonic() - self.started[stage])
        rate = self.tokens[stage] / elapsed
        numbers = (
            f"{self.records[stage]:,} records · {self.shards[stage]:,} shards · {rate:,.0f} tokens/s · "
            f"{self.rejects:,} rejects"
        )
        if self.bars:
            self.bars.update(self.tasks[stage], completed=self.records[stage], total=total, numbers=numbers)
        elif time.monotonic() - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = time.monotonic()
            left = ""
            if total and self.records[stage]:
                seconds = elapsed * (total - self.records[stage]) / self.records[stage]
                left = f" · {self.records[stage] / total:.0%} · about {seconds:,.0f} s left"
            self.console.print(f"{stage}: {numbers}{left}", highlight=False)

    def note(self, sentence: str) -> None:
        """Say what happened, or what is waited for; the same sentence not twice in a row."""
        if sentence != self.noted:
            self.noted = sentence
            self.console.print(sentence, highlight=False)
