"""The finding in words: two or three sentences that never say more than the interval does.

What enters: a `Comparison`. What leaves: sentences. A point is said to be better or worse only where its difference
`holds`: its corrected p is below 5 %, and its interval, over seeds and items both, leaves 0 out. What is not found is
said with what could have been found.
"""

from collections.abc import Sequence

from train.comparison.comparison import Comparison
from train.comparison.pairing import ALPHA, Difference, non_finite_seeds
from train.comparison.reading.columns import Column
from train.comparison.reports.numbers import difference_text, difference_unit, p_words, plain, summary_text


def findings(comparison: Comparison) -> list[str]:
    """Return the sentences, the most important first."""
    column = comparison.headline
    controls = {point.name for point in comparison.points if point.control_of or point.is_reference}
    made = [d for d in comparison.family("baseline") if d.column is column and d.point not in controls]
    known = [d for d in made if d.estimate.difference is not None]
    if not known:
        said = _only_values(comparison, made)
    elif any(d.holds for d in known):
        said = _what_holds(comparison, known)
    else:
        said = _nothing_holds(comparison, known)
    return [*said, *_controls(comparison, known), *_what_is_missing(comparison)]


def _only_values(comparison: Comparison, made: Sequence[Difference]) -> list[str]:
    column, baseline = comparison.headline, comparison.baseline
    summary = comparison.summary(baseline, column)
    unit = "" if summary is None or summary.num_non_finite else f" {column.unit}".rstrip()
    why = "nothing stands against it that was asked the same with a seed in common"
    if any(d.estimate.differences for d in made):
        why = "every point has NaN there, or stands against NaN"
    return [
        f"{baseline.name} has {summary_text(summary, column)}{unit} in {_name(column)}; {why}, so no difference is "
        "stated."
    ]


def _what_holds(comparison: Comparison, known: Sequence[Difference]) -> list[str]:
    column, base = comparison.headline, comparison.baseline.name
    better = sorted((d for d in known if d.holds and d.gain > 0), key=lambda d: -d.gain)
    worse = sorted((d for d in known if d.holds and d.gain < 0), key=lambda d: d.gain)
    said = []
    if better:
        top = better[0]
        text = f"{top.point} is better than {base} in {_name(column)}, by {_amount(top)} ({_evidence(top)})."
        others = len(known) - 1
        if others:
            text += (
                f" Of the {others} other point{_s(others)}, {len(better) - 1} {_is(len(better) - 1)} better and "
                f"{len(worse)} "
                "worse after correction over the table."
            )
        said.append(text)
    elif worse:
        said.append(
            f"No point is shown to be better than {base} in {_name(column)}; {len(worse)} of {len(known)} "
            f"{_is(len(worse))} shown to be worse, {worse[0].point} by {_amount(worse[0])} ({_evidence(worse[0])})."
        )
    return said


def _nothing_holds(comparison: Comparison, known: Sequence[Difference]) -> list[str]:
    column, base = comparison.headline, comparison.baseline.name
    top = max(known, key=lambda d: d.gain)
    if all(d.estimate.difference == 0.0 and d.estimate.low == d.estimate.high == 0.0 for d in known):
        return [f"There is no difference from {base} in {_name(column)}: the runs gave the same, item by item."]
    which = f"the best other point, {top.point}, is at" if len(known) > 1 else f"{top.point} is at"
    if top.estimate.covers != "both":
        return [f"In {_name(column)}, {which} {_signed(top)} from {base} ({_evidence(top)}). {_reason(top)}"]
    said = [
        f"No difference from {base} in {_name(column)} holds: {which} {_signed(top)} ({_evidence(top)}). {_reason(top)}"
    ]
    if seen := top.detectable:
        said.append(
            f"This says little of smaller ones: alone, a difference of {plain(seen * column.scale, column.digits)} "
            f"{difference_unit(column)} would have been found with a chance of about 80 %."
        )
    return said


def _reason(difference: Difference) -> str:
    e = difference.estimate
    if e.covers == "neither":
        return "Without repetitions and items there is no interval, and nothing is called better or worse."
    if e.covers == "items":
        return (
            "With one seed the interval is for other items: what another seed would give is not known, and nothing is "
            "called better or worse."
        )
    if e.covers == "seeds":
        return "How items vary is not known: the interval is for other seeds, and nothing is called better or worse."
    if e.low <= 0.0 <= e.high:
        return "The interval includes 0."
    if e.p >= ALPHA:
        return f"The interval leaves 0 out, but the permutation test does not agree ({p_words(e.p)})."
    return f"The interval alone leaves 0 out, but not corrected for the table's {difference.family_size} comparisons."


def _controls(comparison: Comparison, known: Sequence[Difference]) -> list[str]:
    """Say whether it matters which tokens are important: each point against its own groups, dealt out by chance."""
    made = [
        d for d in comparison.family("control") if d.column is comparison.headline and d.estimate.difference is not None
    ]
    if not made:
        return []
    best = max((d for d in known if d.holds and d.gain > 0), key=lambda d: d.gain, default=None)
    own = next((d for d in made if best is not None and d.point == best.point), None)
    better, worse = (sum(d.holds and d.gain * sign > 0 for d in made) for sign in (1, -1))
    text = ""
    if own is not None:
        shown = "that it matters which tokens are important is not shown by these runs"
        if own.holds:
            shown = "which tokens are important matters there" + ("" if own.gain > 0 else ", and chance does better")
        text = (
            f"Against its own groups permuted within each document, the difference is {_signed(own)} "
            f"({_evidence(own)}): {shown}. "
        )
    if own is None or len(made) > 1:
        text += f"{better} of {len(made)} points with groups {_is(better)} better"
        text += f" and {worse} {_is(worse)} worse" if worse else ""
        text += " than the permuted control after correction."
    return [text.strip()]


def _what_is_missing(comparison: Comparison) -> list[str]:
    said = []
    bad = {
        point.name: seeds
        for point in comparison.points
        if (seeds := sorted({s for column in comparison.columns for s in non_finite_seeds(point, column)}, key=str))
    }
    if bad:
        runs = "; ".join(f"{name}, seed {', '.join(map(str, seeds))}" for name, seeds in bad.items())
        said.append(f"Losses or scores are NaN in {runs}: such points have no mean there and are not compared.")
    if comparison.unfinished:
        counts = {
            reason: sum(u.reason == reason for u in comparison.unfinished)
            for reason in ("failed", "unfinished", "waiting")
        }
        text = ", ".join(f"{number} {reason}" for reason, number in counts.items() if number)
        number = len(comparison.unfinished)
        said.append(f"{number} run{_s(number)} of the sweep {_is(number)} not in it ({text}).")
    return said


def _evidence(difference: Difference) -> str:
    e, column = difference.estimate, difference.column
    if e.low is None:
        return "one run each, no interval"
    seeds = len(difference.seeds)
    over = {"both": f"{seeds} seeds and {e.num_units:,} items", "items": f"{e.num_units:,} items, one seed"}
    interval = f"95 % interval {difference_text(e.low, column)} to {difference_text(e.high, column)}"
    corrected = "" if difference.p_holm is None else f", corrected {p_words(difference.p_holm)}"
    return f"{interval}, {over.get(e.covers, f'{seeds} seeds')}{corrected}"


def _amount(difference: Difference) -> str:
    column = difference.column
    return (
        f"{plain(abs(difference.estimate.difference) * column.scale, column.digits)} {difference_unit(column)}".strip()
    )


def _signed(difference: Difference) -> str:
    column = difference.column
    return f"{difference_text(difference.estimate.difference, column)} {difference_unit(column)}".strip()


def _s(number: int) -> str:
    return "" if number == 1 else "s"


def _is(number: int) -> str:
    return "is" if number == 1 else "are"


def _name(column: Column) -> str:
    return {"Held-out loss": "held-out loss", "Average": "the average"}.get(column.title, column.title)
