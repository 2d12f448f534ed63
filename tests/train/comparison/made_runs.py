"""Run directories as `train sweep`, `train run` and `train evaluate` leave them, with numbers of a known model.

A value of point p, seed s, item i is base_i + effect_p + seed effect + item effect + noise, so that tests know what
is true.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

MANIFEST = "4d2c80ff50f7a6f2434a3dae6eaaf35d519d4b53ce50bb61dd081c4f58c7a9cb"
SUITE = ("MMLU (0)", "MMLU (5)", "MathQA", "ARC-C", "OpenBookQA", "HellaSwag", "TruthfulQA", "IFEval")


def write_run(
    directory: Path,
    seed: int,
    objective: str = "sft",
    grouper: str | None = "tfidf",
    eta: float = 0.7,
    lambda_min: float = 0.9,
    point: str | None = None,
    permuted: bool = False,
    steps: int = 20,
    manifest: str = MANIFEST,
    eval_hash: str | None = "e" * 64,
    learning_rate: float = 1e-5,
    curve: tuple[float, float] = (0.72, 0.59),
    nan_from: int | None = None,
) -> Path:
    """Write run.json and metrics.jsonl; `curve` is where the losses of important and unimportant tokens end."""
    directory.mkdir(parents=True)
    rng = np.random.default_rng([seed, zlib_of(str(directory))])
    lines, switches, worst_before = [], 0, None
    for step in range(1, steps + 1):
        fall = np.exp(-4 * step / steps)
        important = curve[0] + 0.9 * fall + 0.02 * rng.standard_normal()
        unimportant = curve[1] + 0.9 * fall + 0.02 * rng.standard_normal()
        if nan_from is not None and step >= nan_from:
            important = float("nan")
        worst = float(important > unimportant)
        switches += worst_before is not None and worst != worst_before
        worst_before = worst
        entry = {"step": step, "epoch": step / steps, "loss": 0.3 * important + 0.7 * unimportant}
        entry |= {"important_share": 0.29, "loss_all": 0.3 * important + 0.7 * unimportant}
        entry |= {"loss_important": important, "loss_unimportant": unimportant, "worst_group": worst}
        entry |= {"lambda": 0.9} if objective == "go" else {}
        lines.append(json.dumps(entry))
    (directory / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    own = {"objective": objective, "eta": eta, "ties": "threshold", "worst_over": "batch", "select_over": "document"}
    run = {
        "preset": None,
        "shards": ["shards"],
        "grouper": grouper,
        "model": "tiny",
        "eval_fraction": 0.1,
        "eval_seed": 0,
    }
    run |= {"permute_groups": permuted, "point": point, "workers": None}
    content = {
        "command": ["train", "run", "--shards", "shards", "--objective", objective, "--seed", str(seed)],
        "run": run,
        "objective": {**own, "lambda_max": 0.9, "lambda_min": lambda_min},
        "training": {"learning_rate": learning_rate, "max_steps": steps, "seed": seed, "output_dir": str(directory)},
        "model": {"dtype": "float32", "use_peft": False},
        "data": {"column": grouper, "documents": 334, "held_out": 37},
        "eval_hash": eval_hash,
        "point": point,
        "seed": seed,
        "steps": steps,
        "redone": {"num_redone_steps": 0, "num_redone_batches": 0},
        "worst_group_switches": {"count": int(switches), "share_of_steps": switches / steps},
        "tokens_seen": 1_000 * steps,
        "supervised_tokens_seen": 700 * steps,
        "tokens_per_s": 2_000.0 + 10 * seed,
        "train_runtime_s": steps / 2,
        "final_metrics": {"train_runtime": steps / 2},
        "shards": [{"path": "shards", "manifest_sha256": manifest, "documents": 371, "tokenizer": "sample"}],
        "versions": {"sft-go": "0.1.0", "torch": "2.13.0+cpu", "python": "3.11.7"},
        "device": "x86_64, 1 thread",
    }
    (directory / "run.json").write_text(json.dumps(content))
    return directory


def write_documents(
    directory: Path,
    losses: np.ndarray,
    tokens: np.ndarray,
    important: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
    eval_hash: str = "e" * 64,
    eta: float = 0.7,
    ids: Sequence[str] | None = None,
    in_set: str | None = None,
) -> None:
    """Write eval_documents.parquet, or held_out/<in_set>.parquet; `important` is {column: (tokens, losses)}."""
    columns: dict = {
        "document_id": list(ids) if ids is not None else [f"d{index}" for index in range(len(losses))],
        "tokens": np.asarray(tokens, np.int64),
        "loss": np.asarray(losses, np.float64),
    }
    for name, (count, loss) in (important or {}).items():
        columns |= {f"{name}.important_tokens": np.asarray(count, np.int64), f"{name}.important_loss": loss}
    metadata = {
        "eval_hash": eval_hash,
        "eta": eta,
        "ties": "threshold",
        "columns": list(important or {}),
        "eval_seed": 0,
    }
    table = pa.table(columns).replace_schema_metadata({b"sft_go": json.dumps(metadata).encode()})
    path = directory / (f"held_out/{in_set}.parquet" if in_set else "eval_documents.parquet")
    path.parent.mkdir(exist_ok=True)
    pq.write_table(table, path)


def write_task(
    directory: Path,
    name: str,
    answers: np.ndarray,
    groups: Sequence[str | None] | None = None,
    suite: str | None = None,
    **changes,
) -> None:
    """Write evaluation/<name>.json with right (1) and wrong (0) answers."""
    content = {
        "task": name,
        "suite": suite,
        "version": 1.0,
        "num_fewshot": 0,
        "limit": None,
        "checkpoint_hash": "c" * 64,
        "harness_version": "0.4.9",
        "metrics": {"acc": float(np.mean(answers))},
        "headline": "acc",
        "items": [
            {
                "id": f"{index}-{zlib_of(name):08x}",
                "group": None if groups is None else groups[index],
                "acc": float(answer),
            }
            for index, answer in enumerate(answers)
        ],
    }
    place = directory / "evaluation"
    place.mkdir(exist_ok=True)
    (place / f"{name}.json").write_text(json.dumps(content | changes))


def write_suite(
    directory: Path, columns: Mapping[str, float], parts: Mapping | None = None, name: str = "paper"
) -> None:
    """Write evaluation/suite-<name>.json."""
    content = {"suite": name, "columns": dict(columns), "average": float(np.mean(list(columns.values())))}
    place = directory / "evaluation"
    place.mkdir(exist_ok=True)
    (place / f"suite-{name}.json").write_text(json.dumps(content | ({"made_of": parts} if parts else {})))


def write_sweep(
    root: Path,
    points: Mapping[str, dict],
    seeds: Sequence[int] = (1, 2, 3, 4, 5),
    effects: Mapping[str, float] | None = None,
    num_documents: int = 200,
    num_items: int = 0,
    seed_sd: float = 0.01,
    steps: int = 20,
    columns: Sequence[str] = ("tfidf",),
) -> Path:
    """Write a sweep of points {name: settings of `write_run`, and control_of}, whose losses fall by `effects`."""
    rng = np.random.default_rng(zlib_of(root.name))
    tokens = rng.integers(5, 300, num_documents)
    base = rng.normal(1.2, 0.4, num_documents)
    hard = rng.normal(0.0, 1.0, (len(SUITE), num_items))
    count = {name: np.ceil(tokens * 0.3).astype(int) for name in columns}
    for name, settings in points.items():
        own = {key: value for key, value in settings.items() if key != "control_of"}
        gain = (effects or {}).get(name, 0.0)
        for seed in seeds:
            directory = write_run(root / "runs" / name / str(seed), seed, point=name, steps=steps, **own)
            shared = np.random.default_rng([seed, 7]).normal(0, seed_sd)  # of the seed, whatever the point
            mean = base - gain + shared + rng.normal(0, seed_sd) + 0.05 * rng.standard_normal(num_documents)
            important = {c: (n, (mean + 0.1 - gain) * n) for c, n in count.items()}
            write_documents(directory, mean * tokens, tokens, important)
            if num_items:
                _write_paper(directory, hard, gain + shared + rng.normal(0, seed_sd), rng)
    content = {
        "sweep_version": 1,
        "base": {"model": "tiny"},
        "seeds": list(seeds),
        "points": [
            {"name": name, "settings": {}, "control_of": settings.get("control_of")}
            for name, settings in points.items()
        ],
        "keep": "model",
        "product_version": "0.1.0",
        "started": "2026-11-24T11:00:00+00:00",
    }
    (root / "sweep.json").write_text(json.dumps(content))
    return root


def _write_paper(directory: Path, hard: np.ndarray, gain: float, rng: np.random.Generator) -> None:
    values, parts = {}, {}
    for column, difficulty in zip(SUITE, hard, strict=True):
        answers = (difficulty + 4 * gain + 0.5 * rng.standard_normal(len(difficulty)) > 0.1).astype(float)
        task = column.lower().replace(" ", "_").replace("(", "").replace(")", "")
        write_task(directory, task, answers, suite="paper")
        values[column] = float(answers.mean())
        parts[column] = [{"file": f"{task}.json", "task": task, "metric": "acc", "shots": 0}]
    write_suite(directory, values, parts)


def zlib_of(text: str) -> int:
    """Return a number that belongs to a text."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)


PAPER_POINTS = {
    "sft": {"objective": "sft"},
    **{
        f"go-{grouper}-eta{eta}{suffix}": {
            "objective": "go",
            "grouper": grouper,
            "eta": eta,
            "permuted": bool(suffix),
            "curve": (0.5, 0.52) if grouper == "llmlingua2" else (0.45, 0.56),
            **({"control_of": f"go-{grouper}-eta{eta}"} if suffix else {}),
        }
        for grouper in ("tfidf", "llmlingua2")
        for eta in (0.5, 0.7, 0.9)
        for suffix in ("", ".permuted")
    },
    "go-llmlingua2-eta0.7-lambda_min0.05": {
        "objective": "go",
        "grouper": "llmlingua2",
        "eta": 0.7,
        "lambda_min": 0.05,
        "curve": (0.5, 0.52),
    },
    "rho1-rho1-eta0.7": {"objective": "rho1", "grouper": "rho1", "eta": 0.7, "curve": (0.4, 0.7)},
}
PAPER_EFFECTS = {
    "go-tfidf-eta0.5": 0.01,
    "go-tfidf-eta0.7": 0.02,
    "go-tfidf-eta0.9": 0.03,
    "go-llmlingua2-eta0.5": 0.02,
    "go-llmlingua2-eta0.7": 0.05,
    "go-llmlingua2-eta0.9": 0.03,
    "go-llmlingua2-eta0.7-lambda_min0.05": 0.045,
    "rho1-rho1-eta0.7": 0.02,
}
