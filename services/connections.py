"""Connections that cannot be held for nothing: time limits, a limit on their number, a limit on headers.

What enters: bytes of clients. What leaves: requests for the app, by uvicorn's own protocol, which this one extends.

    uvicorn services.app:create_app --factory --http services.connections:Connection     (`annotate serve` does it)

A connection is *waiting* while it has not sent a complete request: it is idle, or its request is half sent. Waiting
ends by a timeout; and where there are as many connections as there may be, the one that has waited longest makes room
for a new one. So those who send slowly, or nothing, take nothing from those who ask.
"""

import asyncio
import json
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from services.errors import STATUSES
from services.metrics import Metrics

STATE_KEY = "sft_go_connections"  # of the lifespan's state, which uvicorn hands to each connection
MARK = "sft_go.connection"  # of a request's scope: it came through this class


@dataclass(frozen=True)
class ConnectionLimits:
    """What a connection may take, and where it is counted."""

    idle_timeout_s: float
    read_timeout_s: float
    write_timeout_s: float
    max_connections: int
    max_header_bytes: int
    metrics: Metrics


class Connection(HttpToolsProtocol):
    """uvicorn's connection with limits."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.limits: ConnectionLimits = self.app_state[STATE_KEY]
        self.timeout_keep_alive = self.limits.idle_timeout_s  # type: ignore[assignment]
        self.waits_since = self.loop.time()
        self._reading: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None
        self._in_head = False
        self._head_bytes = 0

    @property
    def is_waiting(self) -> bool:
        """Tell whether no complete request of this client is being answered."""
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, and make room where there are too many."""
        super().connection_made(transport)
        self.limits.metrics.connections.set(len(self.connections))
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)
        if len(self.connections) <= self.limits.max_connections:
            return
        others = (item for item in self.connections if item is not self and isinstance(item, Connection))
        waiting = [item for item in others if item.is_waiting]
        if waiting:
            min(waiting, key=lambda item: item.waits_since).end("limit")
        else:
            self.refuse("overloaded", "all connections of this server are busy. Try again later.", "limit")

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers."""
        self._stop_timers()
        super().connection_lost(exc)
        self.limits.metrics.connections.set(len(self.connections))

    def data_received(self, data: bytes) -> None:
        """Parse what came; the clock of a request starts with its first byte."""
        if self.transport.is_closing() or self.parser is None:
            return
        if self._reading is None and self.is_waiting:
            self._start_reading()
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > self.limits.max_header_bytes:
                message = f"the headers are over {self.limits.max_header_bytes:,} bytes (SFT_GO_MAX_HEADER_BYTES)."
                self.refuse("headers_too_large", message, "headers")

    def on_message_begin(self) -> None:
        """Begin a request, which may come right after another."""
        if self._reading is None:
            self._start_reading()
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()
        self.scope["extensions"] = {MARK: {}}

    def on_headers_complete(self) -> None:
        """Start the app."""
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The request is here: stop its clock."""
        self._stop_reading()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The connection waits again."""
        self.waits_since = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """The client takes its answer more slowly than it is made."""
        super().pause_writing()
        if self._writing is None:
            self._writing = self.loop.call_later(self.limits.write_timeout_s, self.end, "write_timeout")

    def resume_writing(self) -> None:
        """The client has taken what was written."""
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """The client has not begun a request in time."""
        if not self.transport.is_closing():
            self.limits.metrics.closed.labels("idle_timeout").inc()
        super().timeout_keep_alive_handler()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, in the shape of all errors."""
        self.refuse("bad_request", "this is no HTTP request that can be read.", "bad_request")

    def refuse(self, error_type: str, message: str, reason: str) -> None:
        """Answer with an error, where nothing was answered yet, and close."""
        if self.transport.is_closing():
            return
        self.limits.metrics.closed.labels(reason).inc()
        self._stop_reading()
        self._unset_keepalive_if_required()
        cycle = self.cycle
        if cycle is None or cycle.response_complete or not cycle.response_started:
            content = json.dumps({"error": message, "error_type": error_type}).encode("ascii")
            retry = b"retry-after: 1\r\n" if error_type == "overloaded" else b""
            self.transport.write(
                b"HTTP/1.1 %d \r\ncontent-type: application/json\r\ncontent-length: %d\r\n%sconnection: close\r\n\r\n%s"
                % (STATUSES[error_type], len(content), retry, content)
            )
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True  # the app writes no second answer
            cycle.message_event.set()
        self.transport.close()

    def end(self, reason: str) -> None:
        """Cut the connection, whatever it is doing."""
        self.limits.metrics.closed.labels(reason).inc()
        self._stop_timers()
        self._unset_keepalive_if_required()
        self.transport.abort()

    def _start_reading(self) -> None:
        self._reading = self.loop.call_later(self.limits.read_timeout_s, self._read_timeout)

    def _read_timeout(self) -> None:
        message = f"the request was not complete after {self.limits.read_timeout_s:g} s (SFT_GO_READ_TIMEOUT_S)."
        self.refuse("timeout", message, "read_timeout")

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _stop_timers(self) -> None:
        self._stop_reading()
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None
