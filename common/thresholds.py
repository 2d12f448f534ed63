"""From scores to groups: the only place where eta is applied.

What enters: one document's scores and its supervised mask. What leaves: the mask of its important tokens, and the
threshold. The trainer, the inspector and the service all call this function.
"""

from fractions import Fraction
from typing import Literal, NamedTuple

import numpy as np

from common.errors import UserError

Ties = Literal["threshold", "rank"]


class Groups(NamedTuple):
    """The groups of one document."""

    important: np.ndarray  # bool [num_tokens]: supervised and important (group 1)
    threshold: float  # the eta-quantile of the supervised scores; NaN when the document has no supervised token


def check_eta(eta: float) -> None:
    """Raise a `UserError` unless 0 <= eta < 1."""
    if not 0.0 <= eta < 1.0:
        raise UserError(
            f"eta is the share of tokens that is NOT important and lies in [0, 1), for example 0.9 for the top tenth; "
            f"found {eta}."
        )


def num_important(eta: float, num_tokens: int) -> int:
    """Return ceil((1 - eta) * num_tokens), exactly: eta counts as the decimal number it is printed as.

    In floating point (1 - 0.7) * 10 is a little over 3 and would round up to 4.
    """
    return int(num_tokens - (Fraction(repr(float(eta))) * num_tokens).__floor__())


def important_tokens(scores: np.ndarray, supervised: np.ndarray, eta: float, ties: Ties = "threshold") -> Groups:
    """Split one document's supervised tokens into important and unimportant ones (paper section 3.1, eq. 1 and 2).

    With S the supervised tokens and t the eta-quantile of their scores (numpy's default, linear interpolation, in
    float64), token j is important iff j is in S and score_j > t. Scores equal to t are unimportant, so constant scores
    give an empty important group. `ties="rank"` instead takes exactly ceil((1 - eta) * |S|) tokens, the highest scores
    first and, among equal ones, the earlier position first.

    Args:
        scores: float [num_tokens], finite; higher is more important.
        supervised: bool [num_tokens].
        eta: the share of supervised tokens that is not important, in [0, 1).
        ties: "threshold" or "rank".

    Raises:
        UserError: eta or ties out of range, or a supervised score that is not finite.
    """
    check_eta(eta)
    scores = np.asarray(scores, dtype=np.float64)
    supervised = np.asarray(supervised, dtype=bool)
    if scores.shape != supervised.shape or scores.ndim != 1:
        raise ValueError(f"scores {scores.shape} and supervised {supervised.shape} must be vectors of one length")
    important = np.zeros(scores.shape, dtype=bool)
    positions = np.flatnonzero(supervised)
    if positions.size == 0:
        return Groups(important, float("nan"))
    selected = scores[positions]
    if not np.isfinite(selected).all():
        raise UserError("scores must be finite; found NaN or infinity. Annotate the documents again.")
    threshold = float(np.quantile(selected, eta))
    if ties == "threshold":
        important[positions[selected > threshold]] = True
    elif ties == "rank":
        order = np.argsort(-selected, kind="stable")
        important[positions[order[: num_important(eta, positions.size)]]] = True
    else:
        raise UserError(f'ties must be "threshold" or "rank"; found {ties!r}.')
    return Groups(important, threshold)
