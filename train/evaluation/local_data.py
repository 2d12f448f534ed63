"""Benchmark data of this machine in the columns that the harness's tasks read: $SFT_GO_DATA_HOME instead of a hub.

What enters: the data set that a task's own configuration names, and a folder of files. What leaves: its splits, row by
row with the names and shapes of the hub's. Only the data are replaced; prompts, choices and metrics stay the harness's.

    benchmarks/arc_challenge/test.jsonl, openbookqa, mathqa   question, choices, label (from 0)
    benchmarks/hellaswag/validation.jsonl                     query, choices, label
    benchmarks/mmlu/test.jsonl, dev.jsonl                     subject, question, choices, label
    benchmarks/truthfulqa/TruthfulQA.csv, mc_task.json        the original files
    benchmarks/ifeval/input_data.jsonl                        the original file

The folder `benchmarks` may be left out. Rows that have the hub's columns already stay as they are.

HellaSwag's copies hold the context in one piece, where the harness begins the unfinished sentence at its end with a
capital. That sentence is what follows the last full stop of a query without one at its end (3,243 of the 10,042; the
others end in a full stop and are whole). MathQA's copies have capitals in the place of a to e in some choices
("nonE oF thEsE"), where the original is in small letters throughout.
"""

import csv
import functools
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import UserError
from common.files import sha256_file

DATA_HOME = "SFT_GO_DATA_HOME"
LETTERS = "ABCDE"
Rows = Iterator[dict[str, Any]]


class LocalData(NamedTuple):
    """A data set's splits on this machine."""

    splits: tuple[str, ...]
    load: Callable[..., Any]  # returns them, as the harness calls `custom_dataset`; takes and ignores keywords
    sha256: str  # of the files


class _Source(NamedTuple):
    folder: str
    files: dict[str, str]  # split: file
    reshape: Callable[[dict[str, Any]], dict[str, Any]]
    original: str  # a column that rows of the hub's own form have


def find_local(dataset_path: str, dataset_name: str | None) -> LocalData | None:
    """Return the local copy of a hub's data set, or None where there is none.

    Raises:
        UserError: the folder is not there, or a file of it cannot be read as what it is.
    """
    home = os.environ.get(DATA_HOME)
    source = _SOURCES.get((dataset_path, None if dataset_path == "cais/mmlu" else dataset_name))
    if not home or source is None:
        return None
    if not Path(home).is_dir():
        raise UserError(f"${DATA_HOME}: expected a folder, found none at {home}. Set it right, or unset it.")
    folders = [Path(home, "benchmarks", source.folder), Path(home, source.folder)]
    found = [
        {split: folder / file for split, file in source.files.items() if (folder / file).is_file()}
        for folder in folders
    ]
    files = next((files for files in found if files), None)
    if files is None:
        return None
    subject = dataset_name if dataset_path == "cais/mmlu" else None
    digest = "+".join(sha256_file(file)[:16] for file in files.values())
    return LocalData(tuple(files), functools.partial(_load, files, source, subject), digest)


def _load(files: dict[str, Path], source: _Source, subject: str | None, **_: Any) -> Any:
    from datasets import Dataset, DatasetDict

    splits = {}
    for split, file in files.items():
        try:
            rows = [
                row if source.original in row else source.reshape(row)
                for row in _read(file)
                if subject is None or row["subject"] == subject
            ]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise UserError(
                f"{file}: not the rows that this benchmark has ({type(error).__name__}: {error})."
            ) from error
        if not rows:
            raise UserError(f"{file}: no rows" + (f" of the subject {subject}." if subject else "."))
        splits[split] = Dataset.from_list(rows)
    return DatasetDict(splits)


def _read(file: Path) -> Iterable[dict[str, Any]]:
    text = file.read_text(encoding="utf-8-sig")
    if file.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(text, newline="")))
    if file.suffix == ".json":
        return json.loads(text)
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def _arc(row: dict[str, Any]) -> dict[str, Any]:
    return {"question": row["question"], "choices": _lettered(row["choices"]), "answerKey": LETTERS[row["label"]]}


def _openbookqa(row: dict[str, Any]) -> dict[str, Any]:
    return {"question_stem": row["question"], "choices": _lettered(row["choices"]), "answerKey": LETTERS[row["label"]]}


def _lettered(choices: list[str]) -> dict[str, list[str]]:
    return {"text": choices, "label": list(LETTERS[: len(choices)])}


def _mathqa(row: dict[str, Any]) -> dict[str, Any]:
    letters = LETTERS.lower()
    options = (f"{letter} ) {choice.lower()}" for letter, choice in zip(letters, row["choices"], strict=True))
    return {"Problem": row["question"], "options": " , ".join(options), "correct": letters[row["label"]]}


def _hellaswag(row: dict[str, Any]) -> dict[str, Any]:
    label, _, context = row["query"].partition(": ")
    whole, begun = context, ""
    if not context.rstrip().endswith("."):
        ends = list(re.finditer(r"[.!?][\"']?\s+", context))
        split = ends[-1].end() if ends else 0
        whole, begun = context[:split].rstrip(), context[split:]
    return {
        **{"activity_label": label, "ctx_a": whole, "ctx_b": begun, "endings": row["choices"]},
        "label": str(row["label"]),
    }


def _mmlu(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("question", "subject", "choices")} | {"answer": row["label"]}


def _truthfulqa_choices(row: dict[str, Any]) -> dict[str, Any]:
    targets = {name: row[name] for name in ("mc1_targets", "mc2_targets")}
    return {"question": row["question"]} | {
        name: {"choices": list(target), "labels": list(target.values())} for name, target in targets.items()
    }


def _truthfulqa_generation(row: dict[str, Any]) -> dict[str, Any]:
    names = ("Type", "Category", "Question", "Best Answer", "Source")
    lists = ("Correct Answers", "Incorrect Answers")
    split = {name: [part.strip() for part in row[name].split(";") if part.strip()] for name in lists}
    return {name.lower().replace(" ", "_"): value for name, value in {**{n: row[n] for n in names}, **split}.items()}


def _ifeval(row: dict[str, Any]) -> dict[str, Any]:
    checks = [name.removeprefix("en:") for name in row["instruction_id_list"]]
    return {"key": row["key"], "prompt": row["prompt"], "instruction_id_list": checks, "kwargs": row["kwargs"]}


_TEST = {"test": "test.jsonl"}
_SOURCES = {
    ("allenai/ai2_arc", "ARC-Challenge"): _Source("arc_challenge", _TEST, _arc, "answerKey"),
    ("allenai/openbookqa", "main"): _Source("openbookqa", _TEST, _openbookqa, "question_stem"),
    ("regisss/math_qa", None): _Source("mathqa", _TEST, _mathqa, "Problem"),
    ("Rowan/hellaswag", None): _Source("hellaswag", {"validation": "validation.jsonl"}, _hellaswag, "ctx_a"),
    ("cais/mmlu", None): _Source("mmlu", {"test": "test.jsonl", "dev": "dev.jsonl"}, _mmlu, "answer"),
    ("truthfulqa/truthful_qa", "multiple_choice"): _Source(
        "truthfulqa", {"validation": "mc_task.json"}, _truthfulqa_choices, "mc0_targets"
    ),
    ("truthfulqa/truthful_qa", "generation"): _Source(
        "truthfulqa", {"validation": "TruthfulQA.csv"}, _truthfulqa_generation, "best_answer"
    ),
    ("google/IFEval", None): _Source("ifeval", {"train": "input_data.jsonl"}, _ifeval, "no such column"),
}
