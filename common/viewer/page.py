"""One self-contained HTML file that shows values of tokens: `annotate inspect`, `train inspect`, the service's page.

What enters: a view (below), or None for the page of the service, which has a form instead. What leaves: HTML with its
style, script and data inside. Nothing is fetched from elsewhere; everything is built by the script, so that the page
can export itself again.

A view is a JSON object:

    {"title": str, "eta": float, "ties": "threshold" | "rank",
     "columns": {name: {"kind": "importance" | "reference_loss" | "loss" | "change", "groups_of": name}},
     "documents": [{"id": str, "text": str, "notes": [str],
                    "tokens": {"id": [int], "text": [str], "start": [int], "end": [int], "supervised": [bool]},
                    "scores": {name: [float | null]}}],
     "tables": [{"title": str, "note": str, "header": [str],
                 "rows": [{"cells": [str | float | null], "at": [int, int]}]}]}

with `start` and `end` in code points of `text`. Each column is a panel of values by token. Losses and their changes
have the groups of the importance column that `groups_of` names, and null where no loss is taken; `tables`, which may be
missing, stand under the panels (those with rows), and a row leads to token `at`[1] of document `at`[0].
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SCRIPTS = ("dom.js", "groups.js", "panel.js", "tables.js", "view.js", "export.js", "form.js", "start.js")
SHELL = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<style id="viewer-style">{style}</style>
</head>
<body>
<div id="app"></div>
<noscript>This page colours tokens with JavaScript, which is turned off.</noscript>
<script type="application/json" id="viewer-data">{data}</script>
<script id="viewer-script">{script}</script>
</body>
</html>
"""


@cache
def script() -> str:
    """Return the page's script: the files of this folder, in one scope."""
    parts = [(HERE / name).read_text(encoding="utf-8") for name in SCRIPTS]
    content = '(() => {\n"use strict";\n' + "\n".join(parts) + "})();\n"
    assert "</script" not in content, "the script would end itself"
    return content


@cache
def style() -> str:
    """Return the page's style sheet."""
    return (HERE / "viewer.css").read_text(encoding="utf-8")


def embed_json(value: Any) -> str:
    """Return JSON that can stand in a script element: no text of a document can close it or open a comment."""
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def write_page(view: dict[str, Any] | None) -> str:
    """Return the page of a view, or the one with the form."""
    values = {
        "{title}": "SFT-GO: token importance",
        "{style}": style(),
        "{data}": embed_json(view),
        "{script}": script(),
    }
    page = SHELL
    for marker, value in values.items():
        page = page.replace(marker, value, 1)
    return page
