"""SIGINT and SIGTERM of the command: one line, in time, and the same command goes on."""

import re
import signal
import subprocess
import sys
import time

import psutil
import pytest

from annotate.run.verification import verify_shards
from common.files import sha256_file

# A run whose second stage is slow, as a model is.
SLOW = (
    "import time\nfrom annotate.groupers.random import Random\nscore = Random.score\n"
    "Random.score = lambda self, batch: (time.sleep(0.4), score(self, batch))[1]\n"
    "from annotate.cli import main\nmain()"
)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_error_on_the_way_out_does_not_change_the_status(number):
    code = (
        "import signal\nfrom annotate.run.interruption import interruptible\nwith interruptible():\n"
        f"    try:\n        signal.raise_signal({int(number)})\n    finally:\n        raise ConnectionError\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 128 + number


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "word", "engine"),
    [
        (signal.SIGINT, "Interrupted", "local"),
        (signal.SIGTERM, "Terminated", "local"),
        (signal.SIGTERM, "Terminated", "ray"),
    ],
)
def test_a_signal_ends_the_run_with_a_line_and_keeps_everything(tmp_path, number, word, engine):
    out = tmp_path / "x"
    rows = "20" if engine == "local" else "10"  # its workers do not have the slow score
    flags = ["run", "--grouper", "random", "--engine", engine, "--rows-per-shard", rows, "--out", str(out)]
    process = subprocess.Popen([sys.executable, "-c", SLOW, *flags], stderr=subprocess.PIPE, text=True)
    while not list(out.glob("part-*")):
        assert process.poll() is None
        time.sleep(0.01)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) > 3 or engine == "local"
    started = time.monotonic()
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    taken = time.monotonic() - started
    print(f"{engine}, {word}: {taken:.1f} s")
    assert taken < 5
    assert process.returncode == 128 + number
    *before, last = [line.strip() for line in said.splitlines() if line.strip()]
    assert last == f"{word}. Finished shards are kept: run the same command again to go on."
    progress = re.compile(r"(plan|tokenize|score): |no result for ")  # every 20 s, where starting Ray takes so long
    assert all(progress.match(line) for line in before), said
    assert not [child for child in children if child.is_running()]
    kept = {path.name: sha256_file(path) for path in out.glob("part-*")}
    assert kept
    flags[flags.index("--engine") + 1] = "local"  # whichever goes on; it starts at once
    subprocess.run([sys.executable, "-m", "annotate.cli", *flags], check=True, capture_output=True)
    verify_shards(out)
    assert kept.items() <= {path.name: sha256_file(path) for path in out.glob("part-*")}.items()
    assert not (out / ".writer.json").exists()
