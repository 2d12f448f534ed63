"""Completion in the shell for a command line that is not typer's own, by typer's own mechanism.

What enters: a program's name, its words, and what it takes. What leaves: for `--install-completion` and
`--show-completion`, typer's script for bash, zsh, fish or PowerShell; for the calls which that script makes, the words
that may come next. `annotate` is typer's, and has the same by itself.
"""

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

WORDS = ("--install-completion", "--show-completion")


@dataclass(frozen=True)
class Flag:
    """A flag, by its name with the dashes."""

    name: str
    help: str = ""
    values: Sequence[str] = ()  # to choose from; none where any will do
    stands_alone: bool = False


@dataclass(frozen=True)
class Command:
    """What a command takes."""

    help: str
    flags: Sequence[Flag] = ()
    words: Sequence[str] = field(default=())  # that may stand without a flag


def is_asked(program: str, words: Sequence[str]) -> bool:
    """Tell whether it is completion that a call is about: the shell's question, or a user who installs it."""
    return _variable(program) in os.environ or any(word.partition("=")[0] in WORDS for word in words[:1])


def answer(program: str, words: Sequence[str], commands: Mapping[str, Command]) -> None:
    """Answer, and exit."""
    import typer

    app = typer.Typer(rich_markup_mode=None)
    for name, command in commands.items():
        app.command(name, help=command.help)(_function(command))
    app(args=list(words), prog_name=program)


def _variable(program: str) -> str:
    """Return the environment variable by which typer's script asks."""
    return f"_{program.upper()}_COMPLETE"


def _function(command: Command) -> Callable[..., None]:
    """Return a function that typer takes for the command: only its signature is read."""
    import typer

    def nothing(**_: Any) -> None:
        raise AssertionError("this app completes; it runs nothing")

    def taken(name: str, kind: Any, option: Any) -> inspect.Parameter:
        annotation = Annotated[kind | None, option]
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)

    words = typer.Argument(autocompletion=_among(command.words))
    parameters = [taken("words", list[str], words)]
    for number, flag in enumerate(command.flags):
        option = typer.Option(flag.name, help=flag.help, autocompletion=_among(flag.values))
        parameters.append(taken(f"flag_{number}", bool if flag.stands_alone else str, option))
    nothing.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    nothing.__annotations__ = {item.name: item.annotation for item in parameters}
    return nothing


def _among(values: Sequence[str]) -> Callable[[str], list[str]]:
    def begun(incomplete: str) -> list[str]:
        return [value for value in values if value.startswith(incomplete)]

    return begun
