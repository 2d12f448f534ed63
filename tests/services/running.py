"""The real server in a process of its own, for tests and the benchmark."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

import httpx

ROOT = Path(__file__).resolve().parents[2]
# What `annotate serve` runs, with the test's groupers registered beside the real ones.
COMMAND = [sys.executable, "-c", "import tests.services.probes; from annotate.cli import main; main()", "serve"]


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """`annotate serve` with these flags; a context manager that ends it."""

    def __init__(self, log: Path, *flags: object, environment: dict[str, str] | None = None):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SFT_GO_")}
        self.environment = {**kept, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **(environment or {})}
        self.command = [*COMMAND, "--port", str(self.port), *map(str, flags)]

    def __enter__(self) -> "Server":
        with open(self.log, "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(self.command, cwd=ROOT, env=self.environment, stdout=log, stderr=log)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(30)

    def wait(self, path: str = "/ready", seconds: float = 120.0) -> "Server":
        """Wait until a path answers 200."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            assert self.process.poll() is None, self.logged()
            try:
                if httpx.get(self.url + path, timeout=5.0).status_code == 200:
                    return self
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"{path} did not answer within {seconds} s:\n{self.logged()}")

    def client(self, **options: object) -> httpx.Client:
        """Return a client of this server."""
        return httpx.Client(base_url=self.url, timeout=60.0, **options)  # type: ignore[arg-type]

    def terminate(self, seconds: float = 60.0) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def logged(self) -> str:
        """Return what the process wrote."""
        return self.log.read_text(encoding="utf-8")
