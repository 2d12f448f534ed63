"""Structured logs: one JSON object a line on stderr. Texts of requests never enter them.

What enters: an event's name and its fields. What leaves: a line such as
`{"time": "2025-01-01T12:00:00.000Z", "level": "info", "event": "request", "status": 200, …}`.
"""

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any

LOGGER = logging.getLogger("sft_go.services")


class JsonFormatter(logging.Formatter):
    """Formats records of this project, and those of the server (uvicorn), as JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line of ASCII JSON."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        entry = {"time": time, "level": record.levelname.lower(), "event": record.getMessage()}
        entry.update(getattr(record, "fields", {}))
        if record.exc_info and record.exc_info[1] is not None:
            entry.update(failure(record.exc_info[1]))
        return json.dumps(entry, default=str)


def set_up() -> None:
    """Send this project's and the server's logs to stderr as JSON; done once, when the app is created."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    for logger in (LOGGER, logging.getLogger("uvicorn"), logging.getLogger("uvicorn.error")):
        logger.handlers = [handler] if logger.name != "uvicorn.error" else []
        logger.setLevel(logging.INFO)
        logger.propagate = logger.name == "uvicorn.error"
    # Each request has its line already, with more in it.
    logging.getLogger("uvicorn.access").disabled = True


def log(event: str, level: int = logging.INFO, **fields: Any) -> None:
    """Log an event."""
    LOGGER.log(level, event, extra={"fields": fields})


def failure(error: BaseException) -> dict[str, Any]:
    """Return what a log may say of an exception: its type, where it was raised, and a short message."""
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    message = str(error).splitlines()[0][:300] if str(error) else ""
    return {
        "error_type": type(error).__name__,
        "reason": message,
        "stack": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
    }
