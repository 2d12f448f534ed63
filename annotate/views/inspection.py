"""Looking at documents of a shard directory: their tokens coloured by score and marked by group.

What enters: a shard directory, columns, eta. What leaves: one document on the terminal, or a self-contained HTML file
with several (`common.viewer`), like the paper's figures 5 to 7.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from annotate.tokens.target import TargetTokenizer
from common.errors import UserError
from common.files import atomic_path
from common.manifest import TOKENIZER_NAME
from common.shards import BASE_FIELDS, ShardDirectory, column_kinds
from common.storage import Place, is_url, locate
from common.thresholds import check_eta, important_tokens
from common.viewer.page import write_page
from common.viewer.spans import recover_spans, special_tokens, token_texts
from common.viewer.terminal import coloured, ranks

TOP = 8  # tokens that the terminal lists


def inspect_shards(
    shards: Place,
    groupers: list[str],
    eta: float,
    ties: str,
    document: str | None,
    num: int,
    html: Path | None,
    console: Console,
) -> None:
    """Do what `annotate inspect` does.

    Raises:
        UserError: no such shards, column or document, or eta or ties out of range.
    """
    check_eta(eta)
    if ties not in ("threshold", "rank"):
        raise UserError(f"--ties {ties}: expected threshold or rank.")
    if num < 1:
        raise UserError(f"--num {num}: expected at least 1.")
    directory = ShardDirectory(shards, verify=False)
    for note in directory.notes:
        console.print(note, markup=False)
    columns = [directory.resolve_column(name) for name in dict.fromkeys(groupers)] or list(directory.columns)
    target = TargetTokenizer(str(directory.path / TOKENIZER_NAME))
    if document is not None:
        rows = [find_document(directory, document, columns)]
    else:
        rows = list(read_rows(directory, columns, num if html else 1))
    manifest = directory.manifest
    sources = ", ".join(part.source.name for part in manifest.parts)
    view = {
        "title": f"{sources}, tokenizer {short_name(manifest.tokenizer.name)}, template {manifest.template}",
        "eta": eta,
        "ties": ties,
        "columns": {name: {"kind": directory.columns[name]} for name in columns},
        "documents": [document_view(row, columns, target) for row in rows],
    }
    if html is None:
        print_document(view, console)
        return
    if not html.parent.is_dir():
        raise UserError(f"--html {html}: expected a file in a directory that exists, found no {html.parent}.")
    with atomic_path(html) as temporary:
        temporary.write_text(write_page(view), encoding="utf-8")
    console.print(f"{html}: {len(rows)} document{'s' if len(rows) != 1 else ''}, {', '.join(columns)}.")


def short_name(name: str) -> str:
    """Return how a tokenizer or model is called: a directory by its last telling part, a hub id as it is."""
    if is_url(name):
        place = locate(name)
        return place.parent.name if place.name == TOKENIZER_NAME else place.name
    path = Path(name)
    if not path.is_dir() and not path.is_absolute():
        return name
    path = path.resolve()
    return path.parent.name if path.name == TOKENIZER_NAME else path.name


def read_rows(directory: ShardDirectory, columns: list[str], limit: int) -> Iterator[dict[str, Any]]:
    """Yield the first rows, with these score columns."""
    names = [*(item.name for item in BASE_FIELDS), *columns]
    for table in directory.tables(names, limit=limit):
        assert set(columns) <= set(column_kinds(table.schema)), "the manifest names other columns than the shards hold"
        yield from table.to_pylist()


def find_document(directory: ShardDirectory, wanted: str, columns: list[str]) -> dict[str, Any]:
    """Return the row that `--document` names: its number in the shards, or the start of its id.

    Raises:
        UserError: there is no such document, or there are several.
    """
    count = directory.manifest.counts.documents
    if wanted.isdecimal() and int(wanted) < count:
        number = int(wanted)
    else:
        ids = [name for table in directory.tables(["document_id"]) for name in table["document_id"].to_pylist()]
        found = [number for number, name in enumerate(ids) if name.startswith(wanted)]
        if len(found) != 1:
            several = f"{len(found)} such ids, {ids[found[0]]} and {ids[found[1]]} among them" if found else "none"
            raise UserError(
                f"--document {wanted}: expected a row from 0 to {count - 1} or the start of one document's id, found "
                f"{several}. The ids are in the column document_id of {directory.path}."
            )
        number = found[0]
    for shard in directory.manifest.shards:
        if number < shard.rows:
            names = [*(item.name for item in BASE_FIELDS), *columns]
            return directory.table(shard, names).slice(number, 1).to_pylist()[0]
        number -= shard.rows
    raise AssertionError("the manifest counts more documents than its shards")


def document_view(row: dict[str, Any], columns: list[str], target: TargetTokenizer) -> dict[str, Any]:
    """Return a shard's row in the form of a view's document (`common.viewer.page`)."""
    ids, supervised = np.asarray(row["input_ids"]), np.asarray(row["supervised"], dtype=bool)
    spans, num_approximate = recover_spans(row["text"], ids, supervised, target)
    notes = [f"row {row['source_row']} of the source"]
    if num_approximate:
        notes.append(f"the characters of {num_approximate} tokens are approximate")
    return {
        "id": row["document_id"],
        "text": row["text"],
        "notes": notes,
        "tokens": {
            "id": ids.tolist(),
            "text": token_texts(row["text"], ids, spans, special_tokens(target)),
            "start": spans[:, 0].tolist(),
            "end": spans[:, 1].tolist(),
            "supervised": supervised.tolist(),
        },
        "scores": {name: row[name] for name in columns},
    }


def print_document(view: dict[str, Any], console: Console) -> None:
    """Print the first document of a view, once for each column."""
    document, eta, ties = view["documents"][0], view["eta"], view["ties"]
    console.print(f"{view['title']}\ndocument {document['id']} ({'; '.join(document['notes'])})", markup=False)
    supervised = np.array(document["tokens"]["supervised"], dtype=bool)
    for name, column in view["columns"].items():
        scores = np.array(document["scores"][name])
        important = np.zeros(len(scores), dtype=bool)
        if column["kind"] == "importance":
            important, threshold = important_tokens(scores, supervised, eta, ties)
            count, total = int(important.sum()), int(supervised.sum())
            facts = f"eta {eta}: {count} of {total} supervised tokens important ({count / total:.1%}), "
            facts += f"threshold {threshold:.4g}"
        else:
            facts = "reference losses: only the trainer can make groups of them"
        console.print(f"\n{name} · {facts}", style="bold", markup=False)
        console.print(
            coloured(document, ranks(scores, supervised), supervised, important, console.color_system is not None)
        )
        texts = document["tokens"]["text"]
        order = [index for index in np.argsort(-scores, kind="stable") if supervised[index]][:TOP]
        console.print("highest: " + ", ".join(f"{texts[i]!r} {scores[i]:.4g}" for i in order), markup=False)
    if console.color_system is not None:
        console.print("shade: rank of the score in the document; underlined: important; dim: not supervised.")
