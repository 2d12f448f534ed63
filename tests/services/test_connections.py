"""Connections that send slowly, nothing, or nonsense: each ends in its time; those that ask in full are answered."""

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.services.running import Server, free_port

IDLE, READ, MOST = 0.6, 1.2, 12
BODY = json.dumps({"inputs": "The heart pumps blood.", "grouper": "tfidf"}).encode()
HEAD = b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
WHOLE = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY


@pytest.fixture(scope="module")
def strict(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with short times and few connections."""
    flags = ("--idle-timeout-s", IDLE, "--read-timeout-s", READ, "--max-connections", MOST, "--max-header-bytes", 4096)
    log = tmp_path_factory.mktemp("strict") / "log"
    port = free_port()
    with Server(log, "--state", shards, "--grouper", "tfidf", "--metrics-port", port, *flags) as running:
        running.metrics_port = port
        yield running.wait()
        assert running.process.poll() is None, running.logged()
        assert "Traceback" not in running.logged()


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


def answer(connection: socket.socket) -> tuple[int, dict]:
    """Read until the server closes; return status and JSON, or (0, {})."""
    received = b""
    while part := connection.recv(65536):
        received += part
    if not received:
        return 0, {}
    return int(received[9:12]), json.loads(received.split(b"\r\n\r\n", 1)[1])


@pytest.mark.parametrize("sent", [HEAD, HEAD[:20], b"\r\n", WHOLE[:-3]], ids=["head", "line", "breaks", "body"])
def test_a_request_that_is_not_complete_in_time_is_answered_and_closed(strict, sent):
    started = time.monotonic()
    with connect(strict) as connection:
        connection.sendall(sent)
        status, value = answer(connection)
    assert READ - 0.1 < time.monotonic() - started < READ + 5
    assert (status, value["error_type"]) == (408, "timeout")


def test_a_byte_now_and_then_does_not_extend_the_time(strict):
    started = time.monotonic()
    with connect(strict) as connection:
        for byte in HEAD + b"X-Slow: " + b"y" * 1000:
            try:
                connection.sendall(bytes([byte]))
            except OSError:  # a reset or a broken pipe
                break
            time.sleep(0.1)
            assert time.monotonic() - started < READ + 5
    assert time.monotonic() - started < READ + 5


def test_idle_connections_close_before_and_after_a_request(strict):
    with connect(strict) as connection:
        started = time.monotonic()
        assert answer(connection) == (0, {})
        assert IDLE - 0.1 < time.monotonic() - started < IDLE + 5
    with connect(strict) as connection:
        connection.sendall(WHOLE)
        assert answer(connection)[0] == 200


def test_headers_without_end_are_refused(strict):
    with connect(strict) as connection:
        connection.sendall(HEAD + b"X-Long: " + b"y" * 5000)
        status, value = answer(connection)
    assert (status, value["error_type"]) == (431, "headers_too_large")


def test_what_is_no_http_is_answered_in_the_shape_of_all_errors(strict):
    with connect(strict) as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        status, value = answer(connection)
    assert (status, value["error_type"]) == (400, "bad_request")


def test_slow_senders_make_room_for_those_who_ask(strict):
    slow = [connect(strict) for _ in range(3 * MOST)]
    try:
        for connection in slow:
            connection.sendall(HEAD)
        with strict.client() as client:
            for _ in range(5):
                started = time.monotonic()
                assert client.post("/v1/score", content=BODY, headers={"Content-Type": "application/json"}).is_success
                assert time.monotonic() - started < 3.0
    finally:
        for connection in slow:
            connection.close()


def test_metrics_on_a_second_port_count_what_was_closed(strict):
    lines = httpx.get(f"http://127.0.0.1:{strict.metrics_port}/metrics").text.splitlines()
    counts = dict(line.rsplit(" ", 1) for line in lines if line.startswith("sft_go_connections"))
    assert float(counts['sft_go_connections_closed_total{reason="read_timeout"}']) >= 4
    assert float(counts['sft_go_connections_closed_total{reason="limit"}']) >= 2 * MOST - 1
    assert 0 <= float(counts["sft_go_connections"]) <= MOST


def test_where_every_connection_is_answered_another_one_is_refused_politely(tmp_path, shards):
    flags = ("--state", shards, "--grouper", "probe", "--max-connections", 2)
    body = json.dumps({"inputs": "please sleep", "grouper": "probe"}).encode()
    with Server(tmp_path / "log", *flags) as running:
        running.wait()
        busy = [connect(running) for _ in range(2)]
        for connection in busy:
            connection.sendall(HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        time.sleep(0.3)
        with connect(running) as another:
            status, value = answer(another)
        assert (status, value["error_type"]) == (429, "overloaded")
        assert [answer(connection)[0] for connection in busy] == [200, 200]


def test_a_client_that_does_not_take_its_answer_is_cut(tmp_path, shards):
    flags = ("--state", shards, "--grouper", "tfidf", "--write-timeout-s", 0.5)
    body = json.dumps({"inputs": ["word " * 3000] * 20, "grouper": "tfidf"}).encode()
    with Server(tmp_path / "log", *flags) as running:
        running.wait()
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", running.port))
            connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            until = time.monotonic() + 20
            reason = 'sft_go_connections_closed_total{reason="write_timeout"} 1.0'
            with running.client() as client:
                while reason not in client.get("/metrics").text:
                    assert time.monotonic() < until
                    time.sleep(0.1)
