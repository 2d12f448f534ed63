"""What the machine causes is told in words; what may be a bug stays a traceback. Devices are written, not replaced."""

import errno
import os
import stat

import pytest

from common.errors import UserError, explain
from common.files import atomic_path
from common.hints import did_you_mean, missing_path


def test_errors_of_the_machine_are_explained():
    assert explain(OSError(errno.ENOSPC, "x", "/data/part")).startswith("/data/part: the disk is full")
    assert "no permission" in explain(PermissionError(errno.EACCES, "x", "/root/a"))
    assert explain(OSError(errno.ENOENT, "x", "/proc/.page.html.25ef611dfd77.tmp")).startswith("/proc/page.html: ")
    assert "disk is full" in explain(RuntimeError("serializing: I/O error: No space left on device (os error 28)"))


def test_the_cause_is_found_behind_other_errors():
    outer = RuntimeError("a task failed")
    outer.cause = OSError(errno.EROFS, "x", "/mnt/a")  # as Ray keeps it
    assert "can only be read" in explain(outer)
    chained = ValueError("x")
    chained.__cause__ = UserError("expected this")
    assert explain(chained) == "expected this"


@pytest.mark.parametrize("error", [KeyError("a"), OSError("no number"), FileNotFoundError(errno.ENOENT, "no name")])
def test_what_may_be_a_bug_is_not_explained(error):
    assert explain(error) is None


def test_a_device_is_written_and_stays_a_device(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with atomic_path(pipe) as place:
        place.write_text("written")
    assert os.read(reader, 100) == b"written"
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    os.close(reader)


def test_hints(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "file").touch()
    assert did_you_mean("tfdif", ["tfidf", "random"]) == " Did you mean tfidf?"
    assert did_you_mean("zzz", ["tfidf"]) == ""
    assert missing_path(str(tmp_path / "model")) is None
    assert missing_path(str(tmp_path / "modle")) == "no such directory. Did you mean model?"
    assert missing_path(str(tmp_path / "file")) == "is a file, expected a directory."
    assert missing_path("owner/model") is None
    assert missing_path("gpt2") is None
    assert missing_path("s3://bucket/model") is None
