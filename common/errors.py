"""Errors that a user can act on: the command line prints their text alone, without a traceback.

The text says what was expected, what was found, in which file or flag, and what to do.
"""


class UserError(ValueError):
    """Wrong input, settings or files. Everything else that is raised is a bug of this project."""


def raise_together(problems: list[str]) -> None:
    """Raise one `UserError` that lists every problem; do nothing for an empty list."""
    if len(problems) == 1:
        raise UserError(problems[0])
    if problems:
        raise UserError(f"{len(problems)} problems:\n" + "\n".join(f"  - {problem}" for problem in problems))
