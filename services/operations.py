"""The routes around scoring: is it alive, is it ready, what does it serve, how is it doing; the page and the docs.

What enters: the catalog and the metrics. What leaves: small answers that never wait for a model.
"""

import time
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import Response

from common.manifest import product_version
from services import openapi
from services.catalog import Catalog
from services.errors import ApiError, documented
from services.http import require_key
from services.metrics import Metrics
from services.page import page_response
from services.settings import Settings


def add_operations(app: FastAPI, settings: Settings, catalog: Catalog, metrics: Metrics) -> None:
    """Add the routes to the app."""
    started = time.time()

    @app.get("/health", tags=["operations"])
    async def health() -> dict[str, str]:
        """Answer while the process is alive, whatever its models do."""
        return {"status": "alive"}

    @app.get("/ready", responses=documented(503), tags=["operations"])
    async def ready() -> dict[str, str]:
        """Answer 200 when every grouper has scored a real document, and none has failed since."""
        problems = [
            f"{worker.name}: {worker.state}{f' ({worker.reason})' if worker.reason else ''}"
            for worker in catalog.workers
            if worker.state != "ready"
        ]
        if problems:
            raise ApiError("not_ready", "; ".join(problems))
        return {"status": "ready"}

    @app.get("/info", responses=documented(401), tags=["operations"])
    async def info(request: Request) -> dict[str, Any]:
        """Say what is served, with which limits."""
        require_key(request, settings.api_key)
        sizes = ("max_body_bytes", "max_inputs", "max_input_characters", "max_request_tokens", "max_queue")
        limits = (*sizes, "max_connections", "idle_timeout_s", "read_timeout_s", "write_timeout_s")
        return {
            "name": "sft-go",
            "version": product_version(),
            "started": int(started),
            "tokenizers": [
                {
                    "name": target.name,
                    "fingerprint": target.tokenizer.fingerprint,
                    "template": target.template,
                    "max_length": target.max_length,
                }
                for target in catalog.targets.values()
            ],
            "groupers": list(dict.fromkeys(column.name for column in catalog.columns)),
            "limits": {name: getattr(settings, name) for name in limits},
            "batching": {
                "max_batch_tokens": settings.max_batch_tokens,
                "batch_window_ms": settings.batch_window_ms,
            },
        }

    @app.get("/metrics", responses=documented(401), tags=["operations"], response_class=Response)
    async def show_metrics(request: Request) -> Response:
        """Return Prometheus metrics; under the key, where one is set. `SFT_GO_METRICS_PORT` opens a port without."""
        require_key(request, settings.api_key)
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    page = page_response()

    @app.get("/", include_in_schema=False)
    async def show_page() -> Response:
        """Return the page."""
        return page

    @app.get("/docs", include_in_schema=False)
    async def show_docs() -> Response:
        """Return the API's documentation."""
        return openapi.docs_response(app)
