"""The flags of `annotate run` that groupers bring: the registry is read when a command line is.

What enters: a command's function, with its own flags. What leaves: the same with `--grouper`, and with every field of
every registered grouper's `Flags`, so that a new grouper's are there, in `--help` too, without a word here.
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

    def __init__(self, function: Callable[..., None]):
        """Take a function with the parameters `grouper` and `**flags`, which are given what was typed."""
        functools.update_wrapper(self, function)
        self._function = function

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
            for name, (default, annotation) in {"grouper": _grouper(), **_flags()}.items()
        ]
        taken = {item.name for item in kept} & {item.name for item in named}
        assert not taken, f"groupers' flags that the command has itself: {taken}"
        return own.replace(parameters=[*kept, *named])


def _grouper() -> tuple[Any, Any]:
    from annotate.groupers import REGISTRY

    *others, last = REGISTRY
    text = (
        f"How to score: {', '.join(others)} or {last}. Give it several times for several columns; given later with the "
        "same --out it adds a column. Default: tfidf."
    )
    return None, Annotated[Optional[list[str]], typer.Option(help=text, rich_help_panel=PANEL)]  # noqa: UP045


def _flags() -> dict[str, tuple[Any, Any]]:
    """Return the default and annotation of every grouper's flags, in the order of the registry.

    Raises:
        TypeError: two groupers have one flag with two types or helps, or a flag has a type that none can have.
    """
    from annotate.groupers import REGISTRY, grouper_class

    items: dict[str, dataclasses.Field] = {}
    readers: dict[str, list[str]] = {}
    for name in REGISTRY:
        for item in dataclasses.fields(grouper_class(name).Flags):
            first = items.setdefault(item.name, item)
            if (first.type, first.metadata.get("help")) != (item.type, item.metadata.get("help")):
                raise TypeError(f"{name} and {readers[item.name][0]} have {item.name} with two types or helps")
            readers.setdefault(item.name, []).append(name)
    found = {}
    for flag, item in items.items():
        kind = _kind(item)
        text = f"{item.metadata['help']} ({', '.join(readers[flag])})"
        typed = f"--{flag.replace('_', '-')}"
        option = typer.Option(typed, help=text, rich_help_panel=PANEL, show_default=False)
        found[flag] = (False if kind is bool else None, Annotated[kind if kind is bool else Optional[kind], option])  # noqa: UP045
    return found


def _kind(item: dataclasses.Field) -> Any:
    """Return the type of a flag, without None."""
    kinds = typing.get_args(item.type) if isinstance(item.type, types.UnionType) else (item.type,)
    kinds = tuple(kind for kind in kinds if kind is not types.NoneType)
    if len(kinds) != 1 or kinds[0] not in KINDS:
        raise TypeError(f"{item.name}: a flag is one of {', '.join(kind.__name__ for kind in KINDS)}, not {item.type}")
    return kinds[0]
