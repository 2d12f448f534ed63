"""How a command ends: its exit status, and what is said of an error that the user can act on.

What enters: the command as a function, and its words for an end that nobody planned. What leaves: the process. Both
command lines, `annotate` and `train`, end here.
"""

import os
import sys
from collections.abc import Callable
from typing import NoReturn

from common.errors import explain


def run_and_exit(command: Callable[[], int | None], prefix: str, interrupted: str, unread: str = "") -> NoReturn:
    """Run a command and exit: 0 when all is well, 1 for an error that is the user's or the machine's, 130 for Ctrl-C.

    Args:
        command: returns its status, or raises SystemExit with it.
        prefix: of an error's text.
        interrupted: what is said at Ctrl-C.
        unread: what is said when the reader of the output has gone.
    """
    try:
        try:
            status: int | str | None = command()
        except SystemExit as stop:
            status = stop.code
        sys.stdout.flush()  # here, where a reader that has gone is no traceback
    except BrokenPipeError:  # `train presets | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more
        status = 1
        if unread:
            print(unread, file=sys.stderr)
    except Exception as error:
        text = explain(error)
        if text is None:  # a bug of this project
            raise
        print(f"{prefix}: {text}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        status = 130
    sys.exit(status)
