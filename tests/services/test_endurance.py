"""A short form of `tests.benchmarks.endurance`: odd requests, odd sockets, slow senders, while a client is served."""

import asyncio

from tests.benchmarks.endurance import endure, report
from tests.services.running import Server


def test_the_service_bears_what_the_benchmark_sends_in_full(tmp_path, shards):
    with Server(tmp_path / "log", "--state", shards, "--grouper", "tfidf") as server:
        server.wait()
        findings = asyncio.run(endure(server, requests=300, sockets=80, slow=60, scored=3000))
        assert "Traceback" not in server.logged()
    lines = "\n".join(report(findings))
    # Times are for the benchmark: this runs beside other tests. Here, nobody waits for a timeout.
    assert findings.problems(most_ms=1000) == [], lines
    assert {phase: counts.total() for phase, counts in findings.statuses.items() if phase.startswith("odd")} == {
        "odd requests": 300,
        "odd sockets": 80,
    }, lines
