"""A process that has paid for `train run`'s imports, and forks each run on CPUs from itself.

    python -m train.sweeps.warm PARENT_PID SOCKET

What enters, over a socket: a run's words, working directory and log (as an open file). What leaves: the process id of
the run, a process of its own in a session of its own; and its exit status. The imports take longer than a short run's
steps. Runs on GPUs, and those that start processes themselves, are started anew instead (`launcher.py`): CUDA does not
survive a fork, and beside their hours the imports are nothing.

Nothing is computed here before the fork, so there are no threads whose locks a child could inherit.
"""

import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
from typing import IO, NoReturn

from train.sweeps.launcher import die_with

MESSAGE_BYTES = 1 << 20
COMMAND = "train.cli:main"  # by name: the command stands above this room


class WarmProcess:
    """The other end: starts the process, and runs one run at a time in it."""

    def __init__(self, environment: dict[str, str]):
        """Start it; it imports while the first run is on its way."""
        self.environment = environment
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "train.sweeps.warm", str(os.getpid()), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )

    @property
    def is_alive(self) -> bool:
        """Whether it can run another."""
        return self.process.poll() is None

    def start(self, words: list[str], cwd: str, log: IO[bytes]) -> None:
        """Ask for a run."""
        message = json.dumps({"words": words, "cwd": cwd}).encode()
        socket.send_fds(self.socket, [message], [log.fileno()])

    def answer(self, timeout_s: float) -> dict[str, int] | None:
        """Return the next message, `{"pid": …}` or `{"status": …}`; None after the timeout; EOFError at its end."""
        self.socket.settimeout(timeout_s)
        try:
            data = self.socket.recv(MESSAGE_BYTES)
        except TimeoutError:
            return None
        except OSError:
            data = b""
        if not data:
            raise EOFError
        return json.loads(data)

    def end(self) -> None:
        """End it, and with it what it is running."""
        self.process.kill()
        self.process.wait()
        self.socket.close()


def main() -> None:
    """Serve runs until the parent is gone."""
    parent, number = int(sys.argv[1]), int(sys.argv[2])
    die_with(parent)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    wire = socket.socket(fileno=number)
    with contextlib.suppress(Exception):  # the run meets it too, and says so in its log
        _import()
    while True:
        data, descriptors, _, _ = socket.recv_fds(wire, MESSAGE_BYTES, 1)
        if not data:
            return
        job, log = json.loads(data), descriptors[0]
        here = os.getpid()
        pid = os.fork()
        if pid == 0:
            wire.close()
            _become_run(here, job["words"], job["cwd"], log)
        os.close(log)
        wire.send(json.dumps({"pid": pid}).encode())
        _, status = os.waitpid(pid, 0)
        wire.send(json.dumps({"status": os.waitstatus_to_exitcode(status)}).encode())


def _import() -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot
    import peft  # noqa: F401 (transformers would, in every run)

    import train.run  # noqa: F401


def _become_run(parent: int, words: list[str], cwd: str, log: int) -> NoReturn:
    """Be `train run` in the fork: what the launcher and a new interpreter would have set up."""
    os.setsid()
    die_with(parent)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    os.chdir(cwd)
    sys.argv = ["train", "run", *words]
    module, function = COMMAND.split(":")
    getattr(importlib.import_module(module), function)(
        ["run", *words]
    )  # exits by SystemExit, so the interpreter ends as it always does
    sys.exit(1)


if __name__ == "__main__":
    main()
