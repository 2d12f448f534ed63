"""The scoring service: the app factory and its routes.

What enters: settings from the environment (`SFT_GO_…`). What leaves: an ASGI app.

    annotate serve --state shards            (flags become variables)
    SFT_GO_STATE=shards uvicorn services.app:create_app --factory --http services.connections:Connection

The routes are in `services.scoring` and `services.operations`.
"""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any
from wsgiref.simple_server import WSGIServer

from fastapi import FastAPI
from prometheus_client import start_http_server

from annotate.models.checkpoints import require_safetensors
from common.errors import UserError
from common.manifest import product_version
from services import errors, logs, openapi
from services.catalog import build_catalog
from services.connections import STATE_KEY
from services.http import Observer
from services.metrics import Metrics
from services.operations import add_operations
from services.scoring import add_scoring
from services.settings import Settings


def create_app() -> FastAPI:
    """Build the app from the environment; the factory that uvicorn calls.

    Raises:
        UserError: a setting is wrong, or what it names.
    """
    logs.set_up()
    _set_up_process()
    settings = Settings.from_environment()
    for name in settings.unknown():
        logs.log("unknown_variable", 30, name=name)
    return build_app(settings)


def _set_up_process() -> None:
    """Keep the event loop quick while groupers' threads compute."""
    # A thread gives the interpreter up after this long when another wants it; by default 5 ms, each time.
    sys.setswitchinterval(0.0005)
    # Most requests hold one short text: starting the tokenizers' thread pool for it costs more than it saves.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _listen_for_metrics(settings: Settings, metrics: Metrics) -> WSGIServer | None:
    """Open the second port, where one is asked for.

    Raises:
        UserError: it is taken.
    """
    if settings.metrics_port is None:
        return None
    try:
        server, _ = start_http_server(settings.metrics_port, settings.metrics_host, metrics.registry)
    except OSError as error:
        where = f"{settings.metrics_host}:{settings.metrics_port}"
        raise UserError(f"--metrics-port: cannot listen on {where} ({error.strerror}). Choose another port.") from error
    return server


def build_app(settings: Settings) -> FastAPI:
    """Build the app; its workers start with it.

    Raises:
        UserError: what the settings name is missing or does not fit together.
    """
    # Weights in PyTorch's own format are a program: a service that takes texts from anyone loads none unless told to.
    require_safetensors(not settings.allow_pickle)
    metrics = Metrics()
    limits = settings.connection_limits(metrics)
    catalog = build_catalog(settings, metrics)
    for text in catalog.notes:
        logs.log("note", 30, text=text)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        with ThreadPoolExecutor(2, thread_name_prefix="request") as pool:
            app.state.pool = pool
            listener = _listen_for_metrics(settings, metrics)
            for worker in catalog.workers:
                worker.start()
            logs.log("started", targets=list(catalog.targets), groupers=[worker.name for worker in catalog.workers])
            yield {STATE_KEY: limits}
            for worker in catalog.workers:
                worker.stop()
            until = time.monotonic() + settings.drain_s
            for worker in catalog.workers:
                await asyncio.to_thread(worker.thread.join, max(0.0, until - time.monotonic()))
            if listener is not None:
                listener.shutdown()
            logs.log("stopped")

    app = FastAPI(
        title="SFT-GO scoring service",
        description="Token importance for ad-hoc text: the scores that `annotate run` writes, over HTTP.",
        version=product_version(),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    errors.install(app)
    routes = {"/", "/docs", "/openapi.json", "/health", "/ready", "/metrics", "/info", "/v1/groupers", "/v1/score"}
    app.add_middleware(Observer, metrics=metrics, paths=routes)
    app.state.catalog = catalog
    add_scoring(app, settings, catalog)
    add_operations(app, settings, catalog, metrics)
    openapi.install(app)
    return app
