"""Errors that a user can act on: the command line prints their text alone, without a traceback.

The text says what was expected, what was found, in which file or flag, and what to do.
"""

import errno
import re
from collections.abc import Iterator


class UserError(ValueError):
    """Wrong input, settings or files. Everything else that is raised is a bug of this project."""


def raise_together(problems: list[str]) -> None:
    """Raise one `UserError` that lists every problem; do nothing for an empty list."""
    if len(problems) == 1:
        raise UserError(problems[0])
    if problems:
        raise UserError(f"{len(problems)} problems:\n" + "\n".join(f"  - {problem}" for problem in problems))


FULL = "the disk is full. Free some space and give the same command again: what was finished is kept."
_MEANINGS = {
    errno.ENOSPC: FULL,
    errno.EDQUOT: FULL.replace("disk is full", "quota is used up"),
    errno.EACCES: "no permission. Choose another place, or change who may use this one.",
    errno.EPERM: "this is not permitted here. Choose another place.",
    errno.EROFS: "the file system can only be read. Choose another place.",
    errno.ENOENT: "no such file or directory, and none can be made there. Choose another place.",
    errno.ENOTDIR: "a file stands where a directory is needed. Choose another place.",
    errno.EISDIR: "a directory stands where a file is needed. Choose another name.",
    errno.ENAMETOOLONG: "the name is too long.",
    errno.EMFILE: "too many open files. Raise the limit: ulimit -n 4096.",
    errno.ENODEV: "no such device.",
    errno.ENXIO: "no such device.",
    errno.EIO: "the device cannot be read or written.",
    errno.EADDRINUSE: "the address is in use. Choose another port.",
    errno.EADDRNOTAVAIL: "this machine has no such address.",
}


def explain(error: BaseException) -> str | None:
    """Return what to tell the user of an error that the machine caused; None where it may be a bug of this project."""
    for cause in _causes(error):
        if isinstance(cause, UserError):
            return str(cause)
        text = str(cause)
        if "No space left on device" in text or "os error 28" in text:  # libraries that write hide the number
            return f"{_place(cause)}{FULL}"
        if isinstance(cause, OSError) and cause.errno in _MEANINGS and (cause.filename or cause.errno != errno.ENOENT):
            return f"{_place(cause)}{_MEANINGS[cause.errno]}"
        if type(cause).__name__ == "OutOfMemoryError":
            first = text.partition("\n")[0].partition(". ")[0]
            return f"the device's memory is full ({first}). Smaller batches, shorter documents or a smaller model fit."
        if isinstance(cause, MemoryError):
            return "this machine's memory is full. Smaller batches or shorter documents need less."
    return None


def _place(error: BaseException) -> str:
    name = getattr(error, "filename2", None) or getattr(error, "filename", None)
    # Files are written under a temporary name first (`common.files`), which says nothing to a user.
    return re.sub(r"/\.([^/]+)\.[0-9a-f]{12}\.tmp$", r"/\1", str(name)) + ": " if name else ""


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and what it came from; Ray keeps that in an attribute of its own."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        inner = getattr(current, "cause", None)
        current = inner if isinstance(inner, BaseException) else current.__cause__ or current.__context__
