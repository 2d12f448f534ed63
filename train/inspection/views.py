"""From losses to a view of the viewer (`common.viewer.page`): panels of values by token, and what they come to.

What enters: the losses of a run, or of two, with texts and scores. What leaves: a view: each document's scores, its
losses before and after and the change; the tokens that gained most and least; each group's share of the loss.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.shards import ShardDirectory
from common.thresholds import Ties, important_tokens
from common.viewer.spans import Target, recover_spans, special_tokens, token_texts
from train.inspection.losses import Document, RunLosses

TOP = 12  # tokens of a list
BEFORE, AFTER, CHANGE = "loss before", "loss after", "change"


class ShardTokenizer:
    """The tokenizer that lies beside the shards."""

    def __init__(self, directory: ShardDirectory):
        """Load it; text that reads like a special token stays text, as it was annotated."""
        from transformers import AutoTokenizer

        from common.downloads import on_disk
        from common.manifest import TOKENIZER_NAME

        self.tokenizer = AutoTokenizer.from_pretrained(on_disk(str(directory.path / TOKENIZER_NAME)))
        self.backend = self.tokenizer.backend_tokenizer
        self.backend.no_truncation()
        self.backend.no_padding()
        self.backend.encode_special_tokens = True


def make_view(
    run: RunLosses,
    pairs: Sequence[tuple[Document, Document | None]],
    columns: Sequence[str],
    eta: float,
    ties: Ties,
    target: Target,
    other: RunLosses | None = None,
) -> dict[str, Any]:
    """Return the view of a run's documents, each beside the same one of `other`."""
    first = columns[0] if columns else None
    of_losses = {"kind": "loss", "groups_of": first}
    changes = {"kind": "change", "groups_of": first}
    shown: dict[str, dict[str, Any]] = {name: {"kind": "importance"} for name in columns}
    shown |= {BEFORE: of_losses, AFTER: of_losses, CHANGE: changes}
    if other is not None:
        shown |= {f"{label}, {other.name}": kind for label, kind in ((AFTER, of_losses), (CHANGE, changes))}
        shown[difference_name(other)] = changes
    model = run.content["run"]["model"]
    model = Path(model).name if Path(model).is_absolute() else model  # where it lies is the user's own
    title = f"{run.name}: {run.content['objective']['objective']}, {run.steps} steps, {model}"
    if other is not None:
        title += f" · {other.name}: {other.content['objective']['objective']}, {other.steps} steps"
    specials = special_tokens(target)
    view: dict[str, Any] = {"title": title, "eta": eta, "ties": ties, "columns": shown, "documents": []}
    for document, beside in pairs:
        spans, num_approximate = recover_spans(document.text, document.input_ids, document.supervised, target)
        values = {name: document.scores[name] for name in columns} | _losses(document, beside, other)
        view["documents"].append(
            {
                "id": document.id,
                "text": document.text,
                "notes": [f"the characters of {num_approximate} tokens are approximate"] if num_approximate else [],
                "tokens": {
                    "id": document.input_ids.tolist(),
                    "text": token_texts(document.text, document.input_ids, spans, specials),
                    "start": spans[:, 0].tolist(),
                    "end": spans[:, 1].tolist(),
                    "supervised": document.supervised.tolist(),
                },
                "scores": {name: _or_null(array) for name, array in values.items()},
            }
        )
    moments = [(document.before, document.after) for document, _ in pairs]
    view["tables"] = [
        *(_shares(name, pairs, eta, ties, other) for name in columns),
        *_extremes(view, moments, f"the loss of which {{}} most in {run.name}", pairs, columns, eta, ties),
    ]
    if other is not None:
        between = [(document.after, beside.after) for document, beside in pairs if beside is not None]
        wanted, said = f"which cost {{}} in {other.name} than in {run.name}", ("less", "more")
        names = ("difference", run.name, other.name)
        view["tables"] += _extremes(view, between, wanted, pairs, columns, eta, ties, said, names)
    return view


def difference_name(other: RunLosses) -> str:
    """Return what the difference between two runs is called."""
    return f"after, {other.name} less this"


def _losses(document: Document, beside: Document | None, other: RunLosses | None) -> dict[str, np.ndarray]:
    values = {BEFORE: document.before, AFTER: document.after, CHANGE: document.after - document.before}
    if beside is not None and other is not None:
        values[f"{AFTER}, {other.name}"] = beside.after
        values[f"{CHANGE}, {other.name}"] = beside.after - beside.before
        values[difference_name(other)] = beside.after - document.after
    return values


def _shares(
    column: str,
    pairs: Sequence[tuple[Document, Document | None]],
    eta: float,
    ties: Ties,
    other: RunLosses | None,
) -> dict[str, Any]:
    """Return the table of what each group of a column costs, over all documents."""
    important = np.concatenate([_important(d, column, eta, ties)[d.predicted] for d, _ in pairs])
    moments = [("before", [d.before for d, _ in pairs]), ("after", [d.after for d, _ in pairs])]
    if other is not None:
        moments.append((f"after, {other.name}", [beside.after for _, beside in pairs if beside is not None]))
    losses = [np.concatenate([loss[d.predicted] for loss, (d, _) in zip(of, pairs, strict=True)]) for _, of in moments]
    rows = []
    for group, inside in (("important", important), ("unimportant", ~important), ("all", np.ones_like(important))):
        means = [float(loss[inside].mean()) if inside.any() else np.nan for loss in losses]
        shares = [float(loss[inside].sum() / loss.sum()) for loss in losses]
        cells = [int(inside.sum()), *means, *(f"{share:.1%}" if np.isfinite(share) else None for share in shares)]
        rows.append({"cells": [group, *(None if isinstance(c, float) and not np.isfinite(c) else c for c in cells)]})
    header = ["group", "tokens", *(f"mean {name}" for name, _ in moments), *(f"share {name}" for name, _ in moments)]
    note = f"over {len(pairs)} documents, eta {eta:g}, losses in nats"
    return {"title": f"share of the loss by group of {column}", "note": note, "header": header, "rows": rows}


def _extremes(
    view: dict[str, Any],
    moments: Sequence[tuple[np.ndarray, np.ndarray]],
    wanted: str,
    pairs: Sequence[tuple[Document, Document | None]],
    columns: Sequence[str],
    eta: float,
    ties: Ties,
    words: tuple[str, str] = ("fell", "rose"),
    names: tuple[str, str, str] = ("change", "before", "after"),
) -> list[dict[str, Any]]:
    """Return the tables of the tokens with the lowest and the highest changes; those without one are left out.

    Args:
        view: the view, with its documents.
        moments: of each document, losses at first and then.
        wanted: what the tokens are called, with a place for one of `words`.
        pairs: the documents.
        columns: whose scores stand beside; the first one's groups.
        eta: of the groups.
        ties: of the groups.
        words: for lower and for higher.
        names: of the change, and of the two moments.
    """
    changes = [then - first for first, then in moments]
    places = [(number, index) for number, one in enumerate(changes) for index in np.flatnonzero(np.isfinite(one))]
    values = np.array([changes[number][index] for number, index in places])
    order = np.argsort(values, kind="stable")
    group = [_important(document, columns[0], eta, ties) for document, _ in pairs] if columns else None
    tables = []
    for word, chosen, side in ((words[0], order[:TOP], -1), (words[1], order[::-1][:TOP], 1)):
        rows = []
        for place in (place for place in chosen if values[place] * side > 0):
            number, index = places[place]
            document, _ = pairs[number]
            cells = [view["documents"][number]["tokens"]["text"][index], float(values[place])]
            cells += [float(loss[index]) for loss in moments[number]]
            cells = [cell if isinstance(cell, str) or np.isfinite(cell) else None for cell in cells]
            cells += [f"{document.scores[name][index]:.4g}" for name in columns]
            cells.append("" if group is None else "important" if group[number][index] else "unimportant")
            rows.append({"cells": [*cells, str(number)], "at": [number, int(index)]})
        header = ["token", *names, *columns, "group", "document"]
        tables.append({"title": f"tokens {wanted.format(word)}", "note": "nats", "header": header, "rows": rows})
    return tables


def _important(document: Document, column: str, eta: float, ties: Ties) -> np.ndarray:
    return important_tokens(document.scores[column], document.supervised, eta, ties).important


def _or_null(values: np.ndarray) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]
