"""Become `train run`, and die with whoever started it.

    python -m train.sweeps.launcher PARENT_PID [words of `train run`]

What enters: the parent's process id and the command's words. What leaves: the `train run` process, under this very
process id. A parent that is killed cannot end its runs, so on Linux the kernel does (PR_SET_PDEATHSIG, kept over exec).
Elsewhere an orphan goes on, and the lock that it holds keeps others from its directory. Imports next to nothing, since
every run waits for it.
"""

import os
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Have the kernel kill this process when `parent` ends; exec keeps that, a fork does not."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was gone before the kernel was told
        os._exit(1)


def main() -> None:
    """Tie this process to its parent and exec."""
    parent, words = int(sys.argv[1]), sys.argv[2:]
    die_with(parent)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # Ray starts its processes with SIGINT blocked
    command = Path(sys.executable).with_name("train")
    start = [str(command)] if command.is_file() else ["-m", "train.cli"]
    os.execv(sys.executable, [sys.executable, *start, "run", *words])


if __name__ == "__main__":
    main()
