"""More than two groups: the flag that cuts each document's tokens at several quantiles of their scores."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class QuantileSettings:
    """The flags of objectives over any number of groups."""

    group_quantiles: str | None = field(
        default=None,
        metadata={
            "help": "More than two groups: cut each document's tokens at these quantiles of their scores, in place of "
            "at --eta. 0.5,0.9 makes three groups, the last one of the top tenth (go, dro)."
        },
    )


def parse_quantiles(text: Any) -> tuple[float, ...] | None:
    """Return the quantiles of `--group_quantiles`: "0.5,0.9", or a number or a list of a YAML file.

    Raises:
        ValueError: they are no rising numbers in [0, 1).
    """
    if text is None:
        return None
    parts = text if isinstance(text, (list, tuple)) else str(text).split(",")
    found = tuple(float(part) for part in parts)
    if not found or list(found) != sorted(set(found)) or not (found[0] >= 0 and found[-1] < 1):
        raise ValueError("not rising in [0, 1)")
    return found


def quantile_problems(text: Any) -> list[str]:
    """Return what is wrong with `--group_quantiles`."""
    try:
        parse_quantiles(text)
    except ValueError:
        return [f"--group_quantiles: expected rising numbers in [0, 1), such as 0.5,0.9; found {text!r}."]
    return []
