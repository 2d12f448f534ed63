"""Which settings an objective reads, asked of the registered objectives themselves.

What enters: the effective settings of a point (its preset's, the base's, its own) or of a finished run. What leaves:
the names of settings that would change nothing, and whether the point has groups, which a control can permute. Next:
sweeps and comparisons make one point of points that differ only in such settings.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from train.data.plan import Needs
from train.objectives import DEFAULT_OBJECTIVE, OBJECTIVES

# Settings that make groups. An objective without groups shows its curves by them, and no parameter depends on them.
OF_GROUPS = ("grouper", "eta", "ties", "permute_groups")


def objective_flags() -> frozenset[str]:
    """Return the names of all flags that belong to some objective."""
    return frozenset(flag.name for kind in OBJECTIVES.values() for flag in fields(kind.Settings))


def unread_settings(settings: Mapping[str, Any]) -> frozenset[str]:
    """Return the settings that the point's objective does not read, given or not."""
    kind = OBJECTIVES.get(objective_name(settings))
    if kind is None:
        return frozenset()  # parsing will say so
    own = {flag.name: flag for flag in fields(kind.Settings)}
    given = {
        name: is_true(settings[name]) if flag.type is bool else settings[name]
        for name, flag in own.items()
        if settings.get(name) is not None
    }
    try:
        needs = kind(kind.Settings(**given)).needs
    except (TypeError, ValueError):
        return frozenset()  # the same
    return (objective_flags() - set(own)) | _unread_of_groups(needs)


def _unread_of_groups(needs: Needs) -> frozenset[str]:
    """Return which settings of groups change nothing, beside what an objective needs."""
    if needs.kind is None:
        return frozenset((*OF_GROUPS, "select_over"))
    found = {"ties"} if needs.is_dynamic else {"select_over"}
    found |= {"eta"} if needs.quantiles is not None or needs.scores else set()
    found |= {"ties"} if needs.scores else set()
    found |= {"grouper"} if needs.difference is not None else set()
    return frozenset(found)


def has_groups(settings: Mapping[str, Any]) -> bool:
    """Return whether the point's objective reads groups, so that a control can permute them."""
    return "permute_groups" not in unread_settings(settings)


def objective_name(settings: Mapping[str, Any]) -> str:
    """Return the objective of a point, by default that of `train run`."""
    return str(settings.get("objective") or DEFAULT_OBJECTIVE)


def is_true(value: Any) -> bool:
    """Return a flag's value as `train run` takes it."""
    return str(value).lower() in ("true", "1", "yes")
