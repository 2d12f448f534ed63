"""The report as JSON: every number behind the tables, so that another program can compute all statistics again.

What enters: a `Comparison`. What leaves: a value for `json.dumps`. NaN is null, with the seeds named beside it.

    report_version   1
    made             when, by which version; command
    draws, seed, level        of the resampling; draws null: as many as the table needs, at least 10,000
    baseline, headline        a point's name, a column's key
    findings         sentences
    pool             manifest_hashes, eval_hash, num_documents, tasks, other_sets: what all runs share
    points[]         name, control_of, series, settings (all that make the point), varying,
                     runs[]: directory, seed, command, steps, redone, device, versions, worst_group_switches,
                             tokens_seen, tokens_per_s, train_runtime_s, files {name: sha256} (what was read)
    columns[]        key, title, table (main, yardstick), better, unit, scale (a shown number is value × scale),
    num_units values[]         point, column, per_seed {seed: value}, non_finite_seeds, mean, sd, low, high
    comparisons[]    family, point, against, column, seeds, differences {seed: point − against}, difference, low,
    high,
                     covers (both, seeds, items, neither), p, p_holm, family_size, p_seeds, p_seeds_floor, holds,
                     se_seeds, se_items, num_units, detectable, detectable_in_table, note
    curves {point}   steps, lines {label: {mean, sd}}, worst_important, num_seeds, num_non_finite
    costs[]          a point's runs: device, device_hours, run_s, tokens_per_s, tokens_seen, steps, redone_steps
    unfinished[]     name, reason, tail

Values of a column again: `eval_documents.parquet` (Σ loss / Σ tokens) and `evaluation/` of the run's directory. Mean,
sd, interval of a mean, p_seeds and p_holm follow from this file alone; low, high and p of a comparison with items
need the items as well (train/comparison/statistics/differences.py says how), or, nearly: mean ± t · hypot(se_seeds,
se_items).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from common.files import sha256_file
from train.comparison.comparison import Comparison
from train.comparison.findings import findings
from train.comparison.pairing import Difference, non_finite_seeds, values_of
from train.comparison.reading.runs import DOCUMENTS_NAME, EVALUATION_NAME, METRICS_NAME, RUN_NAME, Run
from train.comparison.statistics.seeds import LEVEL

REPORT_VERSION = 1
OF_A_RUN = (
    "command",
    "steps",
    "redone",
    "device",
    "versions",
    "worst_group_switches",
    "tokens_seen",
    "supervised_tokens_seen",
    "tokens_per_s",
    "train_runtime_s",
)


def report_content(comparison: Comparison, command: Sequence[str], made: Mapping[str, str]) -> dict[str, Any]:
    """Return the content of report.json, as documented above."""
    content = {
        "report_version": REPORT_VERSION,
        "made": {**made, "command": list(command)},
        "draws": comparison.draws,
        "seed": comparison.seed,
        "level": LEVEL,
        "baseline": comparison.baseline.name,
        "headline": comparison.headline.key,
        "findings": findings(comparison),
        "pool": dataclasses.asdict(comparison.common),
        "points": [
            {
                "name": point.name,
                "control_of": point.control_of,
                "series": point.series,
                "settings": point.settings,
                "varying": point.varying,
                "runs": [_run(run) for run in point.runs],
            }
            for point in comparison.points
        ],
        "columns": [
            {
                **{name: getattr(column, name) for name in ("key", "title", "table", "better", "unit", "scale")},
                "num_units": column.num_items,
            }
            for column in comparison.columns
        ],
        "values": list(_values(comparison)),
        "comparisons": [_difference(difference) for difference in comparison.differences],
        "curves": {
            name: {
                "steps": curves.steps,
                "lines": {line.label: {"mean": line.mean, "sd": line.sd} for line in curves.lines},
                "worst_important": curves.worst_important,
                "num_seeds": curves.num_seeds,
                "num_non_finite": curves.num_non_finite,
            }
            for name, curves in comparison.curves.items()
        },
        "costs": [dataclasses.asdict(cost) for cost in comparison.costs],
        "unfinished": [dataclasses.asdict(run) for run in comparison.unfinished],
    }
    return _finite(content)


def _run(run: Run) -> dict[str, Any]:
    read = [run.directory / name for name in (RUN_NAME, DOCUMENTS_NAME, METRICS_NAME)]
    read += sorted((run.directory / EVALUATION_NAME).glob("*.json"))
    files = {str(path.relative_to(run.directory)): sha256_file(path) for path in read if path.is_file()}
    kept = {name: run.content.get(name) for name in OF_A_RUN}
    return {"directory": str(run.directory), "seed": run.seed, **kept, "files": files}


def _values(comparison: Comparison) -> Any:
    for point in comparison.points:
        for column in comparison.columns:
            summary = comparison.summary(point, column)
            if summary is not None:
                yield {
                    "point": point.name,
                    "column": column.key,
                    "per_seed": {str(seed): value for seed, value in values_of(point, column).items()},
                    "non_finite_seeds": non_finite_seeds(point, column),
                    **{name: getattr(summary, name) for name in ("mean", "sd", "low", "high")},
                }


def _difference(d: Difference) -> dict[str, Any]:
    e = d.estimate
    return {
        "family": d.family,
        "point": d.point,
        "against": d.against,
        "column": d.column.key,
        "seeds": list(d.seeds),
        "differences": dict(zip(map(str, d.seeds), e.differences, strict=True)),
        **{name: getattr(e, name) for name in ("difference", "low", "high", "covers", "p")},
        "p_holm": d.p_holm,
        "family_size": d.family_size,
        **{name: getattr(e, name) for name in ("p_seeds", "p_seeds_floor")},
        "holds": d.holds,
        **{name: getattr(e, name) for name in ("se_seeds", "se_items", "num_units")},
        "detectable": d.detectable,
        "detectable_in_table": d.detectable_in_table,
        "note": d.note,
    }


def _finite(value: Any) -> Any:
    """Return the value with null in place of NaN and infinities, which JSON does not have."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return value
