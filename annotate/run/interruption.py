"""SIGINT and SIGTERM: one line, everything finished is kept, no process is left, within a few seconds.

What enters: a run, inside `with interruptible():`. What leaves: the run's own end; or, after a signal, exit status 130
or 143. The run unwinds as it does for any error, so that temporary files, the directory's writer and Ray are cleared.
What has not ended `PATIENCE_S` later (a shard in the middle of a model, say) is ended with the process; files are whole
anyway.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

PATIENCE_S = 2.5
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """A signal asked the run to end. No `Exception`, so that nothing on the way takes it for an error of its own."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Let signals end what runs inside. Only in the main thread, where Python delivers them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if caught:
            return  # the end is on its way
        caught.append(number)
        name = "Interrupted" if number == signal.SIGINT else "Terminated"
        print(
            f"\n{name}. Finished shards are kept: run the same command again to go on.",
            file=sys.stderr,
            flush=True,
        )
        threading.Thread(target=_end_later, args=(number,), daemon=True).start()
        raise Interrupted(number)

    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield
    except BaseException:  # `Interrupted`, or an error on the way out, such as Ray's of a lost connection
        if caught:
            _end(caught[0])
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_later(number: int) -> None:
    threading.Event().wait(PATIENCE_S)
    _end(number)


def _end(number: int) -> None:
    """End this process and every one that it has started, at once."""
    with suppress(Exception):
        import psutil  # type: ignore[import-untyped]

        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                process.kill()
    sys.stdout.flush()
    os._exit(128 + number)
