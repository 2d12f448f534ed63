"""The table of wrong inputs (tests/wrong_inputs.yaml): each is answered in words, with its status, without a traceback.

`python -m tests.test_wrong_inputs` prints the table with what is said and how long it took, as Markdown.
"""

import contextlib
import io
import json
import os
import re
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
TABLE: dict[str, list[dict[str, Any]]] = yaml.safe_load(
    (ROOT / "tests" / "wrong_inputs.yaml").read_text(encoding="utf-8")
)
TOKENIZER = ROOT / "annotate" / "sample" / "tokenizer"
ROWS = [row for rows in TABLE.values() for row in rows]
GOOD = [{"instruction": f"Say {word}.", "output": f"The word is {word}."} for word in ("one", "two", "three", "four")]


@dataclass
class Answer:
    """What an input was answered with."""

    status: int
    text: str
    seconds: float


def make_place(home: Path) -> None:
    """Write the files that the table names."""
    write = {
        "empty.json": b"",
        "broken.json": b'[{"instruction": "q", "output"',
        "notes.txt": b"just words",
        "object.json": b'{"name": "no record"}\n',
        "numbers.json": b"[1, 2]",
        "fake.parquet": b"PAR1 not at all",
        "unknown.jsonl": b'{"question": "q", "answer": "a"}\n',
        "rejected.jsonl": b'{"instruction": "q", "output": ""}\n' * 3,
        "records.jsonl": "".join(json.dumps(record) + "\n" for record in GOOD).encode(),
    }
    for name, content in write.items():
        (home / name).write_bytes(content)
    (home / "nothing").mkdir()
    for name in ("shards", "damaged"):
        words = f"annotate run --data records.jsonl --tokenizer {TOKENIZER} --engine local --out {name} --limit 4"
        answer = type_command(words, home)
        assert answer.status == 0, answer.text
    part = home / "damaged" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-50])


def _only_build(server: Any, **_: Any) -> None:
    """Stand in for uvicorn's loop: make the app as it would, and serve nothing."""
    server.config.load()
    raise SystemExit(0)


def type_command(typed: str, home: Path) -> Answer:
    """Run a command in this process, in the directory."""
    words = shlex.split(typed.format(local=f"--tokenizer {TOKENIZER} --engine local --out new", tokenizer=TOKENIZER))
    if words[0] == "annotate":
        from annotate.cli import main
    else:
        from train.cli import main
    said = io.StringIO()
    on_term = signal.getsignal(signal.SIGTERM)  # `annotate serve` takes it
    kept, environment, argv, status = os.getcwd(), dict(os.environ), sys.argv, 0
    os.chdir(home)
    sys.argv = words
    started = time.monotonic()
    try:
        with (
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
            mock.patch("uvicorn.Server.run", _only_build),
        ):
            main()
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        seconds = time.monotonic() - started
        os.chdir(kept)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = argv
        signal.signal(signal.SIGTERM, on_term)
    return Answer(status, " ".join(said.getvalue().split()), seconds)


def ask(typed: str, client: Any) -> Answer:
    """Send a request: method, path, body."""
    method, path, *body = typed.split(" ", 2)
    started = time.monotonic()
    headers = {"Content-Type": "application/json"}
    response = client.request(method, path, content=body[0] if body else None, headers=headers)
    return Answer(response.status_code, response.json()["error"], time.monotonic() - started)


@contextlib.contextmanager
def service(home: Path) -> Iterator[Any]:
    """Yield a client of the app over the shards."""
    from starlette.testclient import TestClient

    from services.app import build_app
    from services.settings import Settings

    with TestClient(build_app(Settings(state=(str(home / "shards"),)))) as client:
        until = time.monotonic() + 30
        while client.get("/ready").status_code != 200:
            assert time.monotonic() < until
            time.sleep(0.02)
        yield client


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("place")
    make_place(home)
    return home


@pytest.fixture(scope="module")
def client(place: Path) -> Iterator[Any]:
    with service(place) as found:
        yield found


def check(row: dict[str, Any], answer: Answer) -> None:
    assert answer.status == row["status"], answer.text
    assert re.search(row["says"], answer.text), answer.text
    assert "Traceback" not in answer.text
    assert answer.seconds < 30, "this machine may be busy; the first of a kind imports torch"


def test_there_are_at_least_sixty():
    assert len(ROWS) >= 60
    assert len({row["typed"] for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", TABLE["annotate"] + TABLE["train"], ids=lambda row: row["typed"][:60])
def test_commands(row, place):
    check(row, type_command(row["typed"], place))
    assert not (place / "new" / "manifest.json").exists()


@pytest.mark.parametrize("row", TABLE["service"], ids=lambda row: row["typed"][:60])
def test_requests(row, client):
    check(row, ask(row["typed"], client))


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        make_place(home)
        print("| typed | status | time, s | says |\n| --- | --- | --- | --- |")
        with service(home) as client:
            for kind, rows in TABLE.items():
                for row in rows:
                    answer = ask(row["typed"], client) if kind == "service" else type_command(row["typed"], home)
                    text = answer.text.replace("|", "\\|").replace(str(home), "…")
                    typed = row["typed"].replace("|", "\\|")
                    print(f"| `{typed}` | {answer.status} | {answer.seconds:.2f} | {text[:300]} |")


if __name__ == "__main__":
    main()
