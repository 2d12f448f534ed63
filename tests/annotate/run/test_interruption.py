"""SIGINT and SIGTERM of the command: one line, in time, and the same command goes on."""

import re
import signal
import subprocess
import sys
import time

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
@pytest.mark.parametrize(("number", "word"), [(signal.SIGINT, "Interrupted"), (signal.SIGTERM, "Terminated")])
def test_a_signal_ends_the_run_with_a_line_and_keeps_everything(tmp_path, number, word):
    out = tmp_path / "x"
    flags = ["run", "--grouper", "random", "--engine", "local", "--rows-per-shard", "20", "--out", str(out)]
    process = subprocess.Popen([sys.executable, "-c", SLOW, *flags], stderr=subprocess.PIPE, text=True)
    while not list(out.glob("part-*")):
        assert process.poll() is None
        time.sleep(0.01)
    started = time.monotonic()
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - started < 5
    assert process.returncode == 128 + number
    assert re.fullmatch(rf"\s*{word}\. Finished shards are kept: run the same command again to go on\.\s*", said), said
    kept = {path.name: sha256_file(path) for path in out.glob("part-*")}
    assert kept
    subprocess.run([sys.executable, "-m", "annotate.cli", *flags], check=True, capture_output=True)
    verify_shards(out)
    assert kept.items() <= {path.name: sha256_file(path) for path in out.glob("part-*")}.items()
    assert not (out / ".writer.json").exists()
