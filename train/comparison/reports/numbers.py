"""How numbers are written: aligned, with a true minus sign, to the digits that mean something.

What enters: values of a column. What leaves: text, the same in HTML and Markdown.
"""

from train.comparison.pairing import Difference
from train.comparison.reading.columns import Column
from train.comparison.statistics.seeds import Summary

MINUS = "−"
NOTHING = "–"


def plain(value: float | None, digits: int) -> str:
    """Return a number with a fixed number of digits; a dash for None."""
    if value is None:
        return NOTHING
    text = f"{value:,.{digits}f}"
    return text.replace("-", MINUS) if float(text.replace(",", "")) else text.replace("-", "")


def signed(value: float | None, digits: int) -> str:
    """Return a number with its sign; zero has none."""
    text = plain(value, digits)
    return text if value is None or text.startswith(MINUS) or not float(text.replace(",", "")) else f"+{text}"


def value_text(value: float | None, column: Column) -> str:
    """Return a value of a column in its unit."""
    return plain(None if value is None else value * column.scale, column.digits)


def difference_text(value: float | None, column: Column) -> str:
    """Return a difference in a column's unit."""
    return signed(None if value is None else value * column.scale, column.digits)


def interval_text(difference: Difference) -> str:
    """Return `[low, high]`."""
    e, column = difference.estimate, difference.column
    if e.low is None:
        return NOTHING
    return f"[{difference_text(e.low, column)}, {difference_text(e.high, column)}]"


def summary_text(summary: Summary | None, column: Column) -> str:
    """Return mean ± sd, or what stands in its way."""
    if summary is None:
        return NOTHING
    if summary.num_non_finite:
        return f"NaN in {summary.num_non_finite} of {summary.num_seeds}"
    mean = value_text(summary.mean, column)
    return mean if summary.sd is None else f"{mean} ± {value_text(summary.sd, column)}"


def p_text(p: float | None) -> str:
    """Return a p-value: three digits, below 0.001 as such."""
    if p is None:
        return NOTHING
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def p_words(p: float | None, name: str = "p") -> str:
    """Return `p = 0.012`, `p < 0.001`."""
    text = p_text(p)
    return f"{name} < {text[1:]}" if text.startswith("<") else f"{name} = {text}"


def difference_unit(column: Column) -> str:
    """Return what a difference is counted in: percentage points where values are percentages."""
    return "points" if column.unit == "%" else column.unit


def hours_text(hours: float | None) -> str:
    """Return hours with two significant digits at least."""
    return (
        NOTHING
        if hours is None
        else f"{hours:,.1f}"
        if hours >= 10
        else f"{hours:.3f}"
        if hours < 1
        else f"{hours:.2f}"
    )
