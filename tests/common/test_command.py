"""How commands end: status, and what is said where."""

import errno
import subprocess
import sys

import pytest

from common.command import run_and_exit
from common.errors import UserError


def end_of(command, capsys):
    with pytest.raises(SystemExit) as stop:
        run_and_exit(command, "error", "interrupted; go on")
    return stop.value.code, capsys.readouterr().err


def raising(error):
    def command():
        raise error

    return command


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        (lambda: 0, 0, ""),
        (lambda: None, None, ""),  # 0 for sys.exit
        (lambda: 3, 3, ""),
        (raising(SystemExit(2)), 2, ""),
        (raising(UserError("two\nlines")), 1, "error: two\nlines\n"),
        (raising(OSError(errno.ENOSPC, "No space left on device", "x")), 1, "error: x: the disk is full."),
        (raising(KeyboardInterrupt()), 130, "interrupted; go on\n"),
    ],
)
def test_statuses_and_words(command, status, said, capsys):
    found, printed = end_of(command, capsys)
    assert found == status
    assert printed.startswith(said)
    assert bool(printed) == bool(said)


def test_a_bug_keeps_its_traceback():
    with pytest.raises(KeyError):
        run_and_exit(raising(KeyError("x")), "error", "")


@pytest.mark.parametrize("last", ["", "sys.exit(0)"])  # as typer and argparse end, --help say
def test_a_reader_that_has_gone_is_no_traceback(last):
    code = (
        "import sys\nfrom common.command import run_and_exit\n"
        f"def command():\n    sys.stdin.read()\n    print('x' * 9)\n    {last}\n"
        "run_and_exit(command, 'error', '', 'nothing reads it')"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, stderr=-1)
    process.stdout.close()
    process.stdin.close()  # now it prints
    assert (process.stderr.read(), process.wait()) == (b"nothing reads it\n", 1)
    process.stderr.close()
