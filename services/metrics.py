"""What the service counts, in a Prometheus registry of its own, so that two apps in one process do not mix.

What enters: events of requests and of groupers' threads. What leaves: the text of `GET /metrics`.
"""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
POWERS = tuple(float(2**power) for power in range(0, 17))


class Metrics:
    """The service's metrics."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "sft_go_requests", "Requests answered.", ["method", "path", "status"], registry=self.registry
        )
        self.latency = Histogram(
            "sft_go_request_seconds", "Time to answer a request.", ["path"], buckets=SECONDS, registry=self.registry
        )
        self.queue_depth = Gauge(
            "sft_go_queue_depth", "Inputs that wait for a grouper.", ["grouper"], registry=self.registry
        )
        self.up = Gauge("sft_go_grouper_ready", "1 when the grouper answers.", ["grouper"], registry=self.registry)
        self.batch_inputs = Histogram(
            "sft_go_batch_inputs",
            "Inputs scored together.",
            ["grouper"],
            buckets=POWERS[:11],
            registry=self.registry,
        )
        self.batch_tokens = Histogram(
            "sft_go_batch_tokens",
            "Target tokens scored together.",
            ["grouper"],
            buckets=POWERS,
            registry=self.registry,
        )
        self.batch_seconds = Histogram(
            "sft_go_batch_seconds", "Time to score a batch.", ["grouper"], buckets=SECONDS, registry=self.registry
        )
        self.connections = Gauge("sft_go_connections", "Open connections.", registry=self.registry)
        self.closed = Counter(
            "sft_go_connections_closed",
            "Connections that the server closed, by a timeout or a limit.",
            ["reason"],
            registry=self.registry,
        )
        self.tokens = Counter("sft_go_tokens", "Target tokens scored.", ["grouper"], registry=self.registry)
        self.abandoned = Counter(
            "sft_go_abandoned_inputs",
            "Inputs that were not scored because the client had gone.",
            ["grouper"],
            registry=self.registry,
        )

    def watch(self, grouper: str, depth: Callable[[], float], ready: Callable[[], float]) -> None:
        """Read a grouper's queue depth and readiness when `/metrics` is asked for."""
        self.queue_depth.labels(grouper).set_function(depth)
        self.up.labels(grouper).set_function(ready)

    def batch(self, grouper: str, inputs: int, tokens: int, seconds: float) -> None:
        """Count one batch."""
        self.batch_inputs.labels(grouper).observe(inputs)
        self.batch_tokens.labels(grouper).observe(tokens)
        self.batch_seconds.labels(grouper).observe(seconds)
        self.tokens.labels(grouper).inc(tokens)

    def text(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self.registry)
