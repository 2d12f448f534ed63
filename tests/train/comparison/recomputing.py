"""The statistics of a report once more, from its numbers of each run, with nothing of `train.comparison`."""

import numpy as np
import pytest
from scipy import stats


def recompute(content: dict) -> set[str]:
    """Compute means, intervals over seeds, differences, sign flips and Holm's correction of a report's JSON again.

    The interval over seeds and items needs the items' values; it is held against Student's t with the two standard
    errors of the report.

    Returns:
        The families of comparisons that were there.

    Raises:
        AssertionError: where the report says something else.
    """
    values = {(v["point"], v["column"]): v for v in content["values"]}
    for value in values.values():
        x = np.array(list(value["per_seed"].values()))
        assert value["mean"] == pytest.approx(x.mean())
        if len(x) > 1:
            assert value["sd"] == pytest.approx(x.std(ddof=1), abs=1e-12)
        if len(x) > 1 and x.std() > 0:
            interval = stats.t.interval(0.95, len(x) - 1, x.mean(), stats.sem(x))
            assert (value["low"], value["high"]) == pytest.approx(interval)
    families: dict[str, list] = {}
    for row in content["comparisons"]:
        families.setdefault(row["family"], []).append(row)
        _recompute_difference(row, values[row["point"], row["column"]], values[row["against"], row["column"]])
    for rows in families.values():
        p = np.array([row["p"] for row in rows])
        order = np.argsort(p)
        corrected = np.empty(len(p))
        corrected[order] = np.minimum(1, np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p)))))
        assert [row["p_holm"] for row in rows] == pytest.approx(corrected)
    return set(families)


def _recompute_difference(row: dict, first: dict, second: dict) -> None:
    one = first["per_seed"].get("None")  # a checkpoint that no seed made, against every seed
    shared = [s for s in second["per_seed"] if one is not None or s in first["per_seed"]]
    assert sorted(map(str, row["seeds"])) == sorted(shared)  # none is left out
    d = np.array([first["per_seed"].get(str(s), one) - second["per_seed"][str(s)] for s in row["seeds"]])
    assert list(row["differences"].values()) == pytest.approx(d)
    assert row["difference"] == pytest.approx(d.mean())
    n = len(d)
    if n == 1:
        assert (row["p_seeds"], row["covers"]) == (None, "items")
        return
    flips = [abs((d * s).mean()) for s in np.array(np.meshgrid(*[[-1, 1]] * n)).reshape(n, -1).T]
    assert row["p_seeds"] == pytest.approx(np.mean(np.array(flips) >= abs(d.mean()) - 1e-12))
    # Seeds enter by Student's t and items by draws, which are nearly normal: the width lies between the two.
    error = np.hypot(row["se_seeds"], row["se_items"])
    widest = row["difference"] + stats.t.ppf([0.025, 0.975], n - 1) * error
    assert row["low"] >= widest[0] - 0.1 * (widest[1] - widest[0])
    assert row["high"] <= widest[1] + 0.1 * (widest[1] - widest[0])
    assert row["high"] - row["low"] >= 0.9 * 2 * stats.norm.ppf(0.975) * error
