"""The parser of `train`'s commands beside `train run`, whose flags are TRL's too.

What enters: the words after the command. What leaves: their values, or a `UserError` with the nearest flag. A flag may
be spelled with hyphens or underscores.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import NoReturn

from common.errors import UserError
from common.hints import did_you_mean
from train.settings.early import underscored


class CommandParser(argparse.ArgumentParser):
    """argparse's, but for abbreviations and errors."""

    def __init__(
        self, command: str, description: str, usage: str | None = None, advise: Callable[[str], str] | None = None
    ):
        """Begin with `--help` alone; `advise` says what to do of an unknown flag that is near to none."""
        super().__init__(
            f"train {command}",
            usage,
            description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.advise = advise or (lambda flag: "")

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Return the values.

        Raises:
            UserError: a flag that does not exist, a value that does not fit, something missing or too much.
        """
        values, rest = self.parse_known_args(underscored(words))
        flags = list(self._option_string_actions)
        if unknown := [word.partition("=")[0] for word in rest if word.startswith("--")]:
            hints = "".join(did_you_mean(flag, flags) or self.advise(flag) for flag in unknown)
            self.error(f"no such flag: {', '.join(unknown)}.{hints}")
        if rest:
            self.error(f"too much: {' '.join(rest)}")
        return values

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print below the usage."""
        raise UserError(f"{self.prog}: {message.removesuffix('.')}. `{self.prog} --help` lists the flags.")
