"""The flags of a command that groupers bring: the registry is read when a command line is.

What enters: the function of `annotate run` or `annotate serve`, with its own flags. What leaves: the same with
`--grouper`, and with every field of every registered grouper's `Flags`, so that a new grouper's are there, in `--help`
too, without a word here.
"""

import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, Optional

import typer

PANEL = "Scores"
KINDS = (str, int, float, bool)


class WithGroupers:
    """A command that takes the groupers' flags as further arguments.

    typer asks a command for its signature when it reads a command line. So the groupers' modules, light as they are,
    are not imported with the command's, and one that is registered later has its flags as well.
    """

    def __init__(self, function: Callable[..., None], about_grouper: str):
        """Take a function with the parameters `grouper` and `**flags`, which are given what was typed.

        Args:
            function: the command.
            about_grouper: the help of `--grouper`; "{names}" stands for the registered ones.
        """
        functools.update_wrapper(self, function)
        self._function = function
        self._about_grouper = about_grouper

    def __call__(self, **arguments: Any) -> None:
        """Run the command."""
        self._function(**arguments)

    @property
    def __signature__(self) -> inspect.Signature:
        own = inspect.signature(self._function)
        kept = [item for item in own.parameters.values() if item.name not in ("grouper", "flags")]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        named = [
            inspect.Parameter(name, kind, default=default, annotation=annotation)
            for name, (default, annotation) in {"grouper": _grouper(self._about_grouper), **_flags()}.items()
        ]
        taken = {item.name for item in kept} & {item.name for item in named}
        assert not taken, f"groupers' flags that the command has itself: {taken}"
        return own.replace(parameters=[*kept, *named])


def _grouper(about: str) -> tuple[Any, Any]:
    from annotate.groupers import REGISTRY

    *others, last = REGISTRY
    text = about.format(names=f"{', '.join(others)} or {last}")
    return None, Annotated[Optional[list[str]], typer.Option(help=text, rich_help_panel=PANEL)]  # noqa: UP045


def _flags() -> dict[str, tuple[Any, Any]]:
    """Return the default and annotation of every grouper's flags, in the order of the registry."""
    found = {}
    for flag, (item, readers) in registered_flags().items():
        kind = flag_kind(item)
        text = f"{item.metadata['help']} ({', '.join(readers)})"
        typed = f"--{flag.replace('_', '-')}"
        option = typer.Option(typed, help=text, rich_help_panel=PANEL, show_default=False)
        found[flag] = (False if kind is bool else None, Annotated[kind if kind is bool else Optional[kind], option])  # noqa: UP045
    return found


def registered_flags() -> dict[str, tuple[dataclasses.Field, list[str]]]:
    """Return every grouper's flags: name to the field, and to the groupers that read it, in the registry's order.

    Raises:
        TypeError: two groupers have one flag with two types or helps.
    """
    from annotate.groupers import REGISTRY, grouper_class

    found: dict[str, tuple[dataclasses.Field, list[str]]] = {}
    for name in REGISTRY:
        for item in dataclasses.fields(grouper_class(name).Flags):
            first, readers = found.setdefault(item.name, (item, []))
            if (first.type, first.metadata.get("help")) != (item.type, item.metadata.get("help")):
                raise TypeError(f"{name} and {readers[0]} have {item.name} with two types or helps")
            readers.append(name)
    return found


def flag_kind(item: dataclasses.Field) -> Any:
    """Return the type of a flag, without None.

    Raises:
        TypeError: it is one that no flag can have.
    """
    kinds = typing.get_args(item.type) if isinstance(item.type, types.UnionType) else (item.type,)
    kinds = tuple(kind for kind in kinds if kind is not types.NoneType)
    if len(kinds) != 1 or kinds[0] not in KINDS:
        raise TypeError(f"{item.name}: a flag is one of {', '.join(kind.__name__ for kind in KINDS)}, not {item.type}")
    return kinds[0]
