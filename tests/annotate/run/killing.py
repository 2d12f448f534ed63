"""Runs that are killed, and what the same command makes of what they left.

Run: python -m tests.annotate.run.killing [--trials 200] [--seed 0] [--slow] [--engine local|ray] [--work DIR]

Each trial kills a run by SIGKILL, at a random file-system event of its process (before it happens) or at a random
moment, up to three times in a row; then the same command runs to its end. What it must leave, byte for byte: the
directory of a run that nobody killed, and nothing else. Kinds of runs: a new directory; a column added; a damaged shard
and lost state repaired. A directory that was complete must stay readable after every kill.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from rich.console import Console

from annotate.groupers.random import Random
from annotate.run.pipeline import run
from annotate.run.settings import Settings
from common.files import sha256_file
from common.shards import ShardDirectory

KINDS = ("new", "column", "repair")
EVENTS = {"open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir"}


def contents(out: Path) -> dict[str, str]:
    """Return every file below `out` with its SHA-256."""
    return {str(path.relative_to(out)): sha256_file(path) for path in sorted(out.rglob("*")) if path.is_file()}


def annotate(out: Path, groupers: tuple[str, ...], engine: str) -> None:
    """Run the annotation that all trials make."""
    run(Settings("sample", groupers, out, engine=engine, rows_per_shard=40), Console(quiet=True))


def in_child(work, kill_event: int | None, kill_after_s: float | None, out: Path, slow: bool) -> int:
    """Do `work` in a process of its own that is killed; return its status as `os.waitpid` gives it."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    count = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal count
        if event not in EVENTS or not any(str(out) in str(argument) for argument in arguments[:2]):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        count += 1
        if count == kill_event:
            os.kill(os.getpid(), signal.SIGKILL)

    if kill_event is not None:
        sys.addaudithook(hook)
    if kill_after_s is not None:
        threading.Timer(kill_after_s, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
    if slow:  # as a model would be: kills land between shards
        score = Random.score
        Random.score = lambda self, batch: (time.sleep(0.05), score(self, batch))[1]  # type: ignore[method-assign]
    status = 1
    try:
        work()
        status = 0
    except BaseException as error:
        print(f"  the run ended with {type(error).__name__}: {error}", flush=True)
    finally:
        os._exit(status)


class Trials:
    """Everything that trials share: whole directories to compare with and to begin from."""

    def __init__(self, work: Path, engine: str, slow: bool):
        self.work, self.engine, self.slow = work, engine, slow
        self.one, self.two = work / "one", work / "two"
        annotate(self.one, ("tfidf",), "local")
        annotate(self.two, ("tfidf", "random"), "local")

    def begin(self, kind: str, out: Path) -> tuple[str, ...]:
        """Make the directory that a run of this kind finds; return its groupers."""
        shutil.rmtree(out, ignore_errors=True)
        if kind == "column":
            shutil.copytree(self.one, out)
        elif kind == "repair":
            shutil.copytree(self.two, out)
            (out / "part-00003.parquet").write_bytes(b"PAR1 and no more")
            (out / "state" / "tfidf.parquet").unlink()
        return "tfidf", "random"

    def trial(self, kind: str, chance: random.Random, event: int | None = None) -> tuple[str | None, int]:
        """Kill a run and finish it; return what is wrong, or None, and how many kills hit."""
        out = self.work / "out"
        groupers = self.begin(kind, out)
        kills = 0
        for _ in range(1 if event is not None else chance.randint(1, 3)):
            at, after = event, None
            if at is None:
                at, after = (chance.randint(1, 160), None) if chance.random() < 0.5 else (None, chance.uniform(0, 1.5))
            work = lambda: annotate(out, groupers, self.engine)  # noqa: E731
            status = in_child(work, at, after, out, self.slow)
            kills += os.WIFSIGNALED(status)
            if not os.WIFSIGNALED(status) and status != 0:
                return f"{kind}: the run after a kill was refused", kills
            if kind == "column":
                ShardDirectory(out)  # complete at every moment
        status = in_child(lambda: annotate(out, groupers, self.engine), None, None, out, False)
        if status != 0:
            return f"{kind}: the run after the kills did not end", kills
        found, wanted = contents(out), contents(self.two)
        if found != wanted:
            differ = sorted(name for name in {**found, **wanted} if found.get(name) != wanted.get(name))
            return f"{kind}: {differ} differ, are missing or too many", kills
        return None, kills

    def count_events(self, kind: str) -> int:
        """Return how many file-system events a run of this kind has, by killing later and later ones."""
        out, low, high = self.work / "out", 1, 1024
        while low < high:
            middle = (low + high) // 2
            groupers = self.begin(kind, out)
            status = in_child(lambda: annotate(out, groupers, self.engine), middle, None, out, False)  # noqa: B023
            low, high = (middle + 1, high) if os.WIFSIGNALED(status) else (low, middle)
        return low - 1


def main() -> int:
    """Run trials; print a line for each that fails, and a summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200, help="kills at random moments and events")
    parser.add_argument("--every-event", action="store_true", help="then one kill at each file-system event")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slow", action="store_true", help="slow scoring, so that kills land between shards")
    parser.add_argument("--engine", default="local", choices=["local", "ray"])
    parser.add_argument("--work", type=Path, default=None)
    arguments = parser.parse_args()
    chance, failures, kills = random.Random(arguments.seed), [], Counter()
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        trials = Trials(Path(folder), arguments.engine, arguments.slow)
        planned = [(KINDS[number % len(KINDS)], None) for number in range(arguments.trials)]
        for kind in KINDS if arguments.every_event else ():
            planned += [(kind, event) for event in range(1, trials.count_events(kind) + 1)]
        for number, (kind, event) in enumerate(planned):
            problem, hits = trials.trial(kind, chance, event)
            kills[kind] += hits
            if problem is not None:
                failures.append(problem)
                print(f"trial {number}, event {event}: {problem}", flush=True)
    print(f"{len(planned)} trials, {sum(kills.values())} kills that hit ({dict(kills)}): {len(failures)} failures")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
