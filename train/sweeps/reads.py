"""Which settings an objective reads, asked of the objectives themselves.

What enters: the effective settings of a point (its preset's, the base's, its own). What leaves: the names of settings
that would change nothing, and whether the point has groups, which a control can permute. Next: `points.py` makes
one point of points that differ only in such settings.
"""

from collections.abc import Mapping
from typing import Any

# Settings that make groups. An objective without groups shows its curves by them, and no parameter depends on them.
OF_GROUPS = ("grouper", "eta", "ties", "permute_groups")
OF_LAMBDA = ("lambda_max", "lambda_min", "worst_over")
OF_DYNAMIC = ("select_over",)


def unread_settings(settings: Mapping[str, Any]) -> frozenset[str]:
    """Return the settings that the point's objective does not read, given or not."""
    objective = settings.get("objective", "go")
    if objective == "sft":
        return frozenset((*OF_GROUPS, *OF_LAMBDA, *OF_DYNAMIC, "dynamic_groups"))
    if objective == "rho1":
        return frozenset((*OF_LAMBDA, "ties", "dynamic_groups"))
    if objective == "go":
        return frozenset(("ties",) if is_true(settings.get("dynamic_groups")) else OF_DYNAMIC)
    return frozenset()


def has_groups(settings: Mapping[str, Any]) -> bool:
    """Return whether the point's objective reads groups, so that a control can permute them."""
    return "permute_groups" not in unread_settings(settings)


def objective_name(settings: Mapping[str, Any]) -> str:
    """Return the objective of a point, by default that of `train run`."""
    return str(settings.get("objective") or "go")


def is_true(value: Any) -> bool:
    """Return a flag's value as `train run` takes it."""
    return str(value).lower() in ("true", "1", "yes")
