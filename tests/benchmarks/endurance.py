"""What the service bears: odd requests, odd sockets, slow senders, and many scored requests, while a client measures.

Run: python -m tests.benchmarks.endurance [--requests 2000] [--sockets 500] [--slow 300] [--scored 100000]

A real server process scores with tf-idf over the shipped sample, with the limits that `annotate serve` has by default.
One well-behaved client sends a short text every 50 ms all the time, over a connection of its own and over new ones in
turn. Reported: every status that was seen, the well-behaved client's times in each phase, and the server's resident
memory after a warm-up and at the end. Exit status 1: a status of 500 or above, a request of that client that failed, a
median of its times over `--most_ms`, or memory that grew by more than 5 %. Clients and server share
the machine's cores.
"""

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from tests.benchmarks.odd_traffic import normal, odd_bytes, odd_request
from tests.services.running import ROOT, Server

CLIENTS = 16


@dataclass
class Findings:
    """What was seen."""

    statuses: dict[str, Counter] = field(default_factory=dict)  # by phase; 0: closed without an answer
    times_ms: dict[str, list[float]] = field(default_factory=dict)  # of the well-behaved client, by phase
    failed: int = 0  # its requests that were not answered with 200
    memory_mib: list[float] = field(default_factory=list)
    phase: str = "warm"

    def count(self, status: int) -> None:
        """Count an answer in the phase of the moment."""
        self.statuses.setdefault(self.phase, Counter())[status] += 1

    @property
    def growth(self) -> float:
        """The share by which memory grew from the end of the warm-up to the end."""
        return self.memory_mib[-1] / self.memory_mib[0] - 1

    def problems(self, most_ms: float) -> list[str]:
        """Say what should not be."""
        found = [
            f"{phase}: {count} answers with status {status}"
            for phase, statuses in self.statuses.items()
            for status, count in statuses.items()
            if status >= 500
        ]
        if self.failed:
            found.append(f"{self.failed} requests of the well-behaved client failed")
        for phase, times in self.times_ms.items():
            if times and statistics.median(times) > most_ms:
                found.append(f"{phase}: the well-behaved client's median is {statistics.median(times):.1f} ms")
        if self.growth > 0.05:
            found.append(f"memory grew by {self.growth:.1%}")
        return found


async def read_answer(reader: asyncio.StreamReader) -> int:
    """Read one answer and return its status; 0 where the connection ends without one."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        lower = head.lower()
        if b"content-length: " in lower:
            await reader.readexactly(int(lower.split(b"content-length: ")[1].split(b"\r\n")[0]))
        else:
            while (size := int((await reader.readline()).strip() or b"0", 16)) > 0:
                await reader.readexactly(size + 2)
            await reader.readline()
        return int(head[9:12])
    except (asyncio.IncompleteReadError, ConnectionError, asyncio.LimitOverrunError):
        return 0


async def ask_once(port: int, content: bytes, wait_s: float = 30.0) -> int:
    """Send bytes over a connection of their own and return the status of the answer."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(content)
        status = await asyncio.wait_for(read_answer(reader), wait_s)
        writer.close()
        return status
    except (ConnectionError, TimeoutError):
        return 0


async def behave(port: int, findings: Findings, chance: random.Random) -> None:
    """The well-behaved client: a request every 50 ms until it is cancelled."""
    reader = writer = None
    for number in range(10**9):
        started = time.perf_counter()
        try:
            if writer is None or number % 2:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(normal(chance))
            status = await read_answer(reader)
        except ConnectionError:
            status = 0
        if status == 200:
            findings.times_ms.setdefault(findings.phase, []).append(1000 * (time.perf_counter() - started))
        else:
            findings.failed += 1
            writer = None
        if number % 2 and writer is not None:
            writer.close()
            writer = None
        await asyncio.sleep(0.05)


async def in_turn(many: int, at_once: int, work: Callable[[], Awaitable[None]]) -> None:
    """Do `work` so many times, so many at once."""
    left = iter(range(many))

    async def one() -> None:
        for _ in left:
            await work()

    await asyncio.gather(*(one() for _ in range(at_once)))


@asynccontextmanager
async def slow_senders(port: int, many: int, chance: random.Random) -> AsyncIterator[None]:
    """Hold connections that send a byte of a request every half second, and open new ones for those that are closed."""

    async def send() -> None:
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                for byte in normal(chance):
                    writer.write(bytes([byte]))
                    await writer.drain()
                    await asyncio.sleep(0.5)
            except ConnectionError:
                await asyncio.sleep(0.2)

    tasks = [asyncio.create_task(send()) for _ in range(many)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def endure(server: Server, requests: int, sockets: int, slow: int, scored: int) -> Findings:
    """Run all phases against a server."""
    findings, chance, port = Findings(), random.Random(0), server.port

    async def score_some() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(100):
            writer.write(normal(chance))
            findings.count(await read_answer(reader))
        writer.close()

    # Made beforehand: this process's time to make them would count as the server's.
    asked = iter([odd_request(chance) for _ in range(max(50, requests // 10) + requests)])
    sent = iter([odd_bytes(chance) for _ in range(max(50, sockets // 10) + sockets)])

    async def ask_odd() -> None:
        findings.count(await ask_once(port, next(asked)))

    async def send_odd() -> None:
        # Most of these never get an answer, or not before the read timeout: a client that waits a little and goes.
        findings.count(await ask_once(port, next(sent), chance.choice([0.05, 0.5, 3.0])))

    # Everything once, so that what is loaded and allocated only once does not count as growth.
    await in_turn(max(10, scored // 1000), CLIENTS, score_some)
    await in_turn(max(50, requests // 10), CLIENTS, ask_odd)
    await in_turn(max(50, sockets // 10), 50, send_odd)
    findings.memory_mib.append(resident_mib(server))
    client = asyncio.create_task(behave(port, findings, random.Random(1)))
    findings.phase = "odd requests"
    await in_turn(requests, CLIENTS, ask_odd)
    findings.phase = "odd sockets"
    await in_turn(sockets, sockets, send_odd)
    findings.phase = "slow senders"
    async with slow_senders(port, slow, chance):
        await asyncio.sleep(min(30.0, slow / 10))
    findings.memory_mib.append(resident_mib(server))
    findings.phase = "scored requests"
    for _ in range(10):
        await in_turn(scored // 1000, CLIENTS, score_some)
        findings.memory_mib.append(resident_mib(server))
    client.cancel()
    return findings


def resident_mib(server: Server) -> float:
    """Return the server's resident memory."""
    status = Path(f"/proc/{server.process.pid}/status").read_text(encoding="ascii")
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def make_shards(home: Path) -> Path:
    """Annotate the shipped sample."""
    from annotate.run.pipeline import run
    from annotate.run.settings import Settings

    tokenizer = str(ROOT / "annotate" / "sample" / "tokenizer")
    run(
        Settings(data="sample", groupers=("tfidf",), out=home / "shards", tokenizer=tokenizer, engine="local"),
        Console(quiet=True),
    )
    return home / "shards"


def report(findings: Findings) -> list[str]:
    """Return the findings as lines."""
    lines = []
    for phase, statuses in findings.statuses.items():
        shown = ", ".join(f"{status or 'closed'}: {count:,}" for status, count in sorted(statuses.items()))
        lines.append(f"{phase}: {statuses.total():,} ({shown})")
    for phase, times in findings.times_ms.items():
        ordered = sorted(times)
        p95, p99 = (ordered[int(share * (len(ordered) - 1))] for share in (0.95, 0.99))
        shown = f"median {statistics.median(times):.1f} ms, 95 % {p95:.1f} ms, 99 % {p99:.1f} ms ({len(times):,})"
        lines.append(f"a normal request during {phase}: {shown}")
    shown = ", ".join(f"{value:.1f}" for value in findings.memory_mib)
    lines.append(f"resident memory, MiB: {shown}; growth {findings.growth:+.2%}")
    return lines


def main() -> int:
    """Run it and print the findings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--sockets", type=int, default=500)
    parser.add_argument("--slow", type=int, default=300)
    parser.add_argument("--scored", type=int, default=100_000)
    parser.add_argument("--most_ms", type=float, default=50.0, help="of the well-behaved client's median, each phase")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as home,
        Server(Path(home) / "log", "--state", make_shards(Path(home))) as server,
    ):
        server.wait()
        started = time.monotonic()
        findings = asyncio.run(endure(server, options.requests, options.sockets, options.slow, options.scored))
        assert server.process.poll() is None, server.logged()
        tracebacks = server.logged().count("Traceback")
    print(*report(findings), f"{time.monotonic() - started:.0f} s", sep="\n")
    problems = findings.problems(options.most_ms) + [f"{tracebacks} tracebacks in the log"] * bool(tracebacks)
    print(*(f"NOT AS IT SHOULD BE: {problem}" for problem in problems), sep="\n")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
