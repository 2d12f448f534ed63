"""What is seen of a sweep while it runs: one live table on a terminal, plain lines elsewhere.

What enters: which runs have started and how they ended; in between, each run's own log. What leaves: the display, on
stdout.
"""

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from train.sweeps.estimates import duration
from train.sweeps.process import Outcome
from train.sweeps.progress import Progress, finished_progress, running_progress
from train.sweeps.state import FAILED_NAME, LOG_NAME, Run, run_state

SECONDS_BETWEEN_LINES = 30.0
STYLES = {"running": "bold cyan", "failed": "bold red", "finished": "green", "waiting": "dim", "unfinished": "dim"}
ORDER = ("failed", "running", "unfinished", "waiting", "finished")


class SweepTable:
    """The runs of a sweep and how they stand."""

    def __init__(self, console: Console, runs: Sequence[Run]):
        self.console = console
        self.states: dict[str, str] = {run.name: run_state(run.directory) for run in runs}
        self.runs = {run.name: run for run in runs}
        self.progress: dict[str, Progress] = {
            run.name: finished_progress(run.directory)
            for run in runs
            if self.states[run.name] == "finished" and console.is_terminal
        }
        self.before = self.count("finished")  # by earlier calls
        self.capacity = 1.0
        self.walls_s: list[float] = []
        self.last_line = time.monotonic()
        self.live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()

    def count(self, state: str) -> int:
        """Return the number of runs in a state."""
        return sum(value == state for value in self.states.values())

    def started(self, run: Run) -> None:
        """Say that a run begins, or goes on."""
        again = " again" if self.states[run.name] in ("failed", "unfinished") else ""
        self.states[run.name] = "running"
        self._print(f"{run.name}: started{again}")

    def ended(self, run: Run, outcome: Outcome) -> None:
        """Say how a run ended."""
        self.states[run.name] = "failed" if outcome.status else "finished"
        done = f"{self.count('finished')} of {len(self.runs)} finished"
        if outcome.status:
            self._print(
                f"{run.name}: FAILED with status {outcome.status}: {outcome.tail[-1]}  (see "
                f"{run.directory / LOG_NAME} and {FAILED_NAME}; the others go on)",
                "red",
            )
        else:
            self.walls_s.append(outcome.wall_s)
            progress = self.progress[run.name] = finished_progress(run.directory)
            loss = "" if progress.loss is None else f", last loss {progress.loss:.4f}"
            if progress.held_out is not None:  # the last step's documents differ between seeds; these do not
                loss = f", held-out loss {progress.held_out:.4f}"
            self._print(f"{run.name}: finished in {duration(outcome.wall_s)}{loss}  ({done})")
        if outcome.problem:
            self._print(outcome.problem, "red")

    def update(self) -> None:
        """Show where the running ones stand."""
        if self.live:
            for name, state in self.states.items():
                if state == "running":
                    self.progress[name] = running_progress(self.runs[name].directory)
            self.live.update(self._render(), refresh=True)
        elif time.monotonic() - self.last_line >= SECONDS_BETWEEN_LINES:
            self._print(self._summary())

    def _print(self, line: str, style: str | None = None) -> None:
        self.last_line = time.monotonic()
        self.console.print(Text(line, style or ""), soft_wrap=True)

    def _summary(self) -> str:
        parts = [f"{self.count('finished')} of {len(self.runs)} finished", f"{self.count('running')} running"]
        if failed := self.count("failed"):
            parts.append(f"{failed} failed")
        left = self.count("running") + self.count("waiting") + self.count("unfinished")
        if self.walls_s and left:
            mean_s = sum(self.walls_s) / len(self.walls_s)
            parts.append(f"about {duration(mean_s * left / max(self.capacity, 1))} left")
        return ", ".join(parts)

    def _render(self) -> Group:
        table = Table("run", "state", box=None, pad_edge=False, header_style="bold")
        for name in ("step", "loss", "held out", "left"):
            table.add_column(name, justify="right")
        names = sorted(self.runs, key=lambda name: ORDER.index(self.states[name]))  # stable: the sweep's order within
        room = max(self.console.height - 4, 3)
        for name in names[:room]:
            state, at = self.states[name], self.progress.get(name, Progress())
            step = "" if at.step is None else f"{at.step}/{at.num_steps}"
            loss = "" if at.loss is None else f"{at.loss:.4f}"
            held_out = "" if at.held_out is None else f"{at.held_out:.4f}"
            left = at.left or at.said or "" if state == "running" else ""
            table.add_row(name, Text(state, STYLES[state]), step, loss, held_out, left)
        more = [Text(f"… and {len(names) - room} more", "dim")] if len(names) > room else []
        return Group(table, *more, Text(self._summary(), "bold"))
