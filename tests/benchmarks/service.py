"""What batching does for the service: throughput and latency with 32 clients, and what happens when there are too many.

Run: python -m tests.benchmarks.service [--seconds 8] [--rounds 5] [--layers 24] [--width 32] [--characters 20 60]

A real server process scores with `llmlingua2` and a small compressor with random weights (its speed is that of trained
ones). Clients are closed loops over keep-alive connections: each sends a short text, waits for the answer, and sends
the next. Rounds with batching on and off (`--max-batch-tokens 1`: one forward a request) alternate; medians are
reported. Clients and server share the machine's cores; the server's CPU time a request does not depend on who else uses
them.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.annotate.groupers.llmlingua2.compressor_checkpoints import SAMPLE, save_compressor, small_tokenizer
from tests.services.running import ROOT, Server

CLIENTS = 32
TOKENIZER = ROOT / "annotate" / "sample" / "tokenizer"


@dataclass
class Load:
    """What the clients saw."""

    seconds: float
    statuses: Counter = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)  # seconds, of answers with status 200
    cpu_ms: float = 0.0  # the server's CPU time, an answer

    @property
    def throughput(self) -> float:
        """Answers with status 200 a second."""
        return self.statuses[200] / self.seconds

    def percentile(self, share: float) -> float:
        """Milliseconds that this share of the answers took at most."""
        ordered = sorted(self.latencies)
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def messages(inputs_a_request: int, characters: tuple[int, int]) -> list[bytes]:
    """Return the raw requests: sentences of the shipped sample with so many characters."""
    parts = (part.strip() for text in SAMPLE for part in text.replace("\n", ". ").split(". "))
    sentences = [part for part in parts if characters[0] <= len(part) <= characters[1]]
    found = []
    for start in range(0, min(len(sentences), 512) - inputs_a_request, inputs_a_request):
        inputs = sentences[start : start + inputs_a_request]
        body = json.dumps({"inputs": inputs, "grouper": "llmlingua2"}).encode()
        head = (
            f"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        )
        found.append(head.encode() + b"\r\n" + body)
    return found


async def client(port: int, number: int, requests: list[bytes], until: float, load: Load) -> None:
    """Send requests one after another until the time is over."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    index = number * 7
    while time.monotonic() < until:
        started = time.monotonic()
        writer.write(requests[index % len(requests)])
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        status = int(head[9:12])
        load.statuses[status] += 1
        if status == 200:
            load.latencies.append(time.monotonic() - started)
        else:
            await asyncio.sleep(0.05)  # a client that is refused waits a little
        index += 1
    writer.close()


def drive(
    port: int, seconds: float, characters: tuple[int, int], inputs_a_request: int = 1, clients: int = CLIENTS
) -> Load:
    """Run the clients against a server."""
    requests = messages(inputs_a_request, characters)

    async def all_clients() -> Load:
        load, started = Load(seconds), time.monotonic()
        until = started + seconds
        await asyncio.gather(*(client(port, number, requests, until, load) for number in range(clients)))
        load.seconds = time.monotonic() - started
        return load

    return asyncio.run(all_clients())


def cpu_seconds(server: Server) -> float:
    """Return the CPU time that the server has used, over all its threads."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def batch_size(server: Server) -> float:
    """Return the mean number of inputs in a batch, from the metrics."""
    with server.client() as http:
        lines = dict(line.rsplit(" ", 1) for line in http.get("/metrics").text.splitlines() if line[0] != "#")
    total, count = (float(lines[f'sft_go_batch_inputs_{part}{{grouper="llmlingua2"}}']) for part in ("sum", "count"))
    return total / count


def main() -> None:
    """Run the benchmark and print its findings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--characters", type=int, nargs=2, default=(20, 60), help="of a text, least and most")
    parser.add_argument("--threads", default="1", help="of the model on the CPU (OMP_NUM_THREADS)")
    options = parser.parse_args()
    characters = tuple(options.characters)
    with tempfile.TemporaryDirectory() as home:
        size = {
            "num_hidden_layers": options.layers,
            "hidden_size": options.width,
            "intermediate_size": 4 * options.width,
            "num_attention_heads": max(1, options.width // 32),
        }
        model = save_compressor(Path(home) / "compressor", "bert", small_tokenizer("bert"), **size)
        flags = ("--tokenizer", TOKENIZER, "--compressor-model", model)
        threads = {"OMP_NUM_THREADS": options.threads}
        print(
            f"{os.cpu_count()} cores, Python {platform.python_version()}, compressor {options.layers} x {options.width}"
        )
        with (
            Server(Path(home) / "on", *flags, environment=threads) as on,
            Server(Path(home) / "off", *flags, "--max-batch-tokens", 1, environment=threads) as off,
        ):
            servers = {"on": on.wait(), "off": off.wait()}
            found: dict[str, list[Load]] = {name: [] for name in servers}
            for server in servers.values():
                drive(server.port, 2.0, characters)  # warm
            for number in range(options.rounds):
                for name, server in servers.items():
                    before = cpu_seconds(server)
                    load = drive(server.port, options.seconds, characters)
                    load.cpu_ms = 1000 * (cpu_seconds(server) - before) / load.statuses.total()
                    found[name].append(load)
                    print(
                        f"round {number + 1}, batching {name:3}: {load.throughput:7.1f} requests/s, p50 "
                        f"{load.percentile(0.5):6.1f} ms, p99 {load.percentile(0.99):6.1f} ms, CPU "
                        f"{load.cpu_ms:5.2f} ms a request, {dict(load.statuses)}"
                    )
            print(f"mean inputs a batch: on {batch_size(on):.1f}, off {batch_size(off):.1f}")
        ratios = [a.throughput / b.throughput for a, b in zip(found["on"], found["off"], strict=True)]
        tails = [load.percentile(0.99) / load.percentile(0.5) for load in found["on"]]
        failures = sum(load.statuses.total() - load.statuses[200] for loads in found.values() for load in loads)
        print(f"throughput, on over off: {statistics.median(ratios):.2f} (rounds {[round(r, 2) for r in ratios]})")
        print(f"p99 over p50, batching on: {statistics.median(tails):.2f} (rounds {[round(r, 2) for r in tails]})")
        print(f"answers other than 200: {failures}")
        overload(Path(home), flags, threads, options.seconds, characters)


def overload(
    home: Path, flags: tuple[object, ...], threads: dict[str, str], seconds: float, characters: tuple[int, int]
) -> None:
    """Send more than a short queue takes; then check that the server is as before."""
    with Server(home / "overload", *flags, "--max-queue", 32, "--max-inputs", 8, environment=threads) as server:
        server.wait()
        calm = drive(server.port, 3.0, characters, clients=4)
        flood = drive(server.port, seconds, characters, inputs_a_request=8)
        after = drive(server.port, 3.0, characters, clients=4)
    print(f"overload (32 clients x 8 inputs, queue of 32): {dict(flood.statuses)}")
    print(
        f"4 clients before: {dict(calm.statuses)}, p50 {calm.percentile(0.5):.1f} ms; "
        f"after: {dict(after.statuses)}, p50 {after.percentile(0.5):.1f} ms"
    )


if __name__ == "__main__":
    main()
