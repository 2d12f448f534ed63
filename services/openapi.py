"""The OpenAPI document, and `/docs`: a page made from it that needs no CDN.

What enters: the app. What leaves: `/openapi.json` with the request's schema (its body is read by hand, within limits),
and plain HTML.
"""

import html
import json
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.responses import Response

from services.schemas import INPUTS_SCHEMA, Error, Message, ScoreRequest

EXAMPLE = {"inputs": "The heart pumps blood.", "grouper": "tfidf", "eta": 0.7}
SCORE_BODY = {
    "required": True,
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ScoreRequest"}, "example": EXAMPLE}},
}


SCORE_LINES = {
    "content": {
        "application/x-ndjson": {
            "schema": {"type": "string", "description": "The same in lines (`services.streaming`), if accepted."}
        }
    }
}


def install(app: FastAPI) -> None:
    """Add the schemas that no parameter of a handler names."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
            )
            schemas = schema.setdefault("components", {}).setdefault("schemas", {})
            for model in (ScoreRequest, Message, Error):
                own = model.model_json_schema(ref_template="#/components/schemas/{model}")
                schemas.update(own.pop("$defs", {}))
                schemas[model.__name__] = own
            schemas["ScoreRequest"]["properties"]["inputs"] = INPUTS_SCHEMA
            schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            for path in ("/v1/score", "/v1/groupers", "/info", "/metrics"):
                for operation in schema["paths"][path].values():
                    operation["security"] = [{}, {"key": []}]  # only where the server has a key
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
code, pre { font-family: ui-monospace, monospace; font-size: .9em; }
pre { background: color-mix(in srgb, currentColor 8%, transparent); padding: .75rem; border-radius: .5rem;
  overflow-x: auto; }
h2 { border-top: 1px solid color-mix(in srgb, currentColor 25%, transparent); padding-top: 1rem; }
td, th { text-align: left; vertical-align: top; padding: .15rem .75rem .15rem 0; }
"""


def docs_response(app: FastAPI) -> Response:
    """Return the documentation as one HTML page."""
    schema = app.openapi()
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>{html.escape(schema['info']['title'])}</title><style>{_STYLE}</style>",
        f"<h1>{html.escape(schema['info']['title'])} {html.escape(schema['info']['version'])}</h1>",
        f"<p>{html.escape(schema['info']['description'])} Machine-readable: <a href=openapi.json>openapi.json</a>. "
        "To try it without writing a request: <a href=./>the page</a>.</p>",
        f"<pre>curl -s localhost:8000/v1/score -H 'Content-Type: application/json' \\\n  -d '{_dump(EXAMPLE)}'</pre>",
    ]
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            parts.append(f"<h2><code>{method.upper()} {html.escape(path)}</code></h2>")
            parts.append(f"<p>{html.escape(operation.get('description', ''))}</p>")
            parts.append("<table><tr><th>status<th>meaning</tr>")
            for status, response in operation["responses"].items():
                parts.append(f"<tr><td><code>{status}</code><td>{html.escape(response['description'])}</tr>")
            parts.append("</table>")
    parts.append("<h2>Schemas</h2>")
    for name, model in sorted(schema["components"]["schemas"].items()):
        parts.append(f"<h3 id={html.escape(name)}>{html.escape(name)}</h3>")
        parts.append(f"<pre>{html.escape(json.dumps(model, indent=2, ensure_ascii=False))}</pre>")
    return Response("\n".join(parts), media_type="text/html; charset=utf-8")


def _dump(value: Any) -> str:
    return html.escape(json.dumps(value), quote=False)
