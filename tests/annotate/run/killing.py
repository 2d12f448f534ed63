"""Runs that are killed, and what the same command makes of what they left.

Run: python -m tests.annotate.run.killing [--trials 200] [--seed 0] [--slow] [--engine local|ray] [--work DIR]
                                          [--every-event] [--kinds append refit]

Each trial kills a run by SIGKILL, at a random file-system event of its process (before it happens) or at a random
moment, up to three times in a row; then the same command runs to its end. What it must leave, byte for byte: the
directory of a run that nobody killed, and nothing else. Kinds of runs: a new directory; a column added; a damaged shard
and lost state repaired; records appended; records appended and terms counted anew; terms counted anew. A directory that
was complete must stay readable after every kill.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from annotate.groupers.random import Random
from annotate.records.sources import SAMPLE_PATH
from annotate.run.pipeline import run
from annotate.run.settings import Settings
from common.files import sha256_file
from common.shards import ShardDirectory

KINDS = ("new", "column", "repair", "append", "append and refit", "refit")
STAYS_COMPLETE = ("column", "append", "append and refit", "refit")
EVENTS = {"open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir"}


def contents(out: Path) -> dict[str, str]:
    """Return every file below `out` with its SHA-256."""
    return {str(path.relative_to(out)): sha256_file(path) for path in sorted(out.rglob("*")) if path.is_file()}


def annotate(out: Path, engine: str, **settings: Any) -> None:
    """Run an annotation of the shipped sample, if no other data are named."""
    given = {"data": "sample", "out": out, "engine": engine, "rows_per_shard": 40, **settings}
    run(Settings(**given), Console(quiet=True))


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
        self.appended, self.refitted = work / "appended", work / "refitted"
        annotate(self.one, "local", groupers=("tfidf",))
        annotate(self.two, "local", groupers=("tfidf", "random"))
        self.more = {"data": str(work / "more.jsonl"), "append": True, "groupers": ()}
        lines = SAMPLE_PATH.read_bytes().splitlines(keepends=True)
        (work / "more.jsonl").write_bytes(b"".join([*lines[-90:], b'{"messages": []}\n', *lines[:30]]))
        for out, refit in ((self.appended, False), (self.refitted, True)):
            shutil.copytree(self.two, out)
            annotate(out, "local", **self.more, refit=refit)

    def begin(self, kind: str, out: Path) -> tuple[Callable[[], None], Path]:
        """Make the directory that a run of this kind finds; return the run, and the directory that it must leave."""
        shutil.rmtree(out, ignore_errors=True)
        wanted, more = self.two, {"groupers": ("tfidf", "random")}
        if kind == "column":
            shutil.copytree(self.one, out)
        elif kind == "repair":
            shutil.copytree(self.two, out)
            (out / "part-00003.parquet").write_bytes(b"PAR1 and no more")
            (out / "state" / "tfidf.parquet").unlink()
        elif kind == "append":
            shutil.copytree(self.two, out)
            wanted, more = self.appended, self.more
        elif kind == "append and refit":
            shutil.copytree(self.two, out)
            wanted, more = self.refitted, {**self.more, "refit": True}
        elif kind == "refit":
            shutil.copytree(self.appended, out)
            wanted, more = self.refitted, {"data": None, "groupers": (), "refit": True}
        return lambda: annotate(out, self.engine, **more), wanted

    def trial(self, kind: str, chance: random.Random, event: int | None = None) -> tuple[str | None, int]:
        """Kill a run and finish it; return what is wrong, or None, and how many kills hit."""
        out = self.work / "out"
        work, expected = self.begin(kind, out)
        kills = 0
        for _ in range(1 if event is not None else chance.randint(1, 3)):
            at, after = event, None
            if at is None:
                at, after = (chance.randint(1, 160), None) if chance.random() < 0.5 else (None, chance.uniform(0, 1.5))
            status = in_child(work, at, after, out, self.slow)
            kills += os.WIFSIGNALED(status)
            if not os.WIFSIGNALED(status) and status != 0:
                return f"{kind}: the run after a kill was refused", kills
            if kind in STAYS_COMPLETE:
                ShardDirectory(out)  # complete at every moment
        status = in_child(work, None, None, out, False)
        if status != 0:
            return f"{kind}: the run after the kills did not end", kills
        found, wanted = contents(out), contents(expected)
        if found != wanted:
            differ = sorted(name for name in {**found, **wanted} if found.get(name) != wanted.get(name))
            return f"{kind}: {differ} differ, are missing or too many", kills
        return None, kills

    def count_events(self, kind: str) -> int:
        """Return how many file-system events a run of this kind has, by killing later and later ones."""
        out, low, high = self.work / "out", 1, 1024
        while low < high:
            middle = (low + high) // 2
            status = in_child(self.begin(kind, out)[0], middle, None, out, False)
            low, high = (middle + 1, high) if os.WIFSIGNALED(status) else (low, middle)
        return low - 1


def main() -> int:
    """Run trials; print a line for each that fails, and a summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200, help="kills at random moments and events")
    parser.add_argument("--every-event", action="store_true", help="then one kill at each file-system event")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slow", action="store_true", help="slow scoring, so that kills land between shards")
    parser.add_argument("--engine", default="local", choices=["local", "ray"])
    parser.add_argument("--work", type=Path, default=None)
    arguments = parser.parse_args()
    kinds = arguments.kinds
    chance, failures, kills = random.Random(arguments.seed), [], Counter()
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        trials = Trials(Path(folder), arguments.engine, arguments.slow)
        planned = [(kinds[number % len(kinds)], None) for number in range(arguments.trials)]
        for kind in kinds if arguments.every_event else ():
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
