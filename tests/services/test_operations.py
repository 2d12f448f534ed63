"""The service as a process: readiness, a thread that dies, clients that go, signals, metrics, logs."""

import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.services.browser import until
from tests.services.probes import BREAK, DIE, FAIL, REFUSE, SLEEP
from tests.services.running import Server


def start(home: Path, tokenizer: Path) -> Server:
    """Return a server of the test's grouper, with a short queue."""
    flags = ("--tokenizer", tokenizer, "--grouper", "probe", "--grouper", "random", "--max-length", 64)
    return Server(home / "log", *flags, "--max-queue", 4, "--max-inputs", 4)


@pytest.fixture(scope="module")
def probes(tmp_path_factory: pytest.TempPathFactory, sample_tokenizer: Path) -> Iterator[Server]:
    """A server for the tests that leave it whole."""
    with start(tmp_path_factory.mktemp("probes"), sample_tokenizer) as running:
        yield running.wait()


@pytest.fixture
def doomed(tmp_path: Path, sample_tokenizer: Path) -> Iterator[Server]:
    """A server for a test that breaks or ends it."""
    with start(tmp_path, sample_tokenizer) as running:
        yield running.wait()


def ask(client: httpx.Client, inputs: object, grouper: str = "probe") -> httpx.Response:
    return client.post("/v1/score", json={"inputs": inputs, "grouper": grouper})


def in_background(server: Server, text: str, seconds: float = 0.4) -> tuple[threading.Thread, list[httpx.Response]]:
    """Send a request from a thread of its own; wait until the server has it."""
    answers: list[httpx.Response] = []

    def send() -> None:
        with server.client() as client:
            answers.append(ask(client, text))

    thread = threading.Thread(target=send)
    thread.start()
    time.sleep(seconds)
    return thread, answers


def metric(server: Server, name: str) -> float:
    with server.client() as client:
        lines = client.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name) and 'grouper="probe"' in line)


def test_health_answers_during_a_forward_and_ready_stays(probes):
    thread, answers = in_background(probes, SLEEP)
    with probes.client() as client:
        started = time.monotonic()
        assert client.get("/health").json() == {"status": "alive"}
        assert client.get("/ready").status_code == 200
        assert ask(client, "other", "random").status_code == 200
        assert time.monotonic() - started < 1.0
    assert not answers, "the forward was over too soon for the test to mean anything"
    thread.join()
    assert answers[0].status_code == 200


def test_a_dead_thread_is_told_and_the_process_lives(doomed):
    thread, waiting = in_background(doomed, SLEEP)  # occupies the thread; the next ones queue
    others = [in_background(doomed, text) for text in (DIE, "innocent")]
    for running, answers in [(thread, waiting), *others]:
        running.join()
        assert len(answers) == 1
    assert waiting[0].status_code == 200
    for _, answers in others:
        assert answers[0].status_code == 503, answers[0].text
        assert answers[0].json()["error_type"] == "not_ready"
    with doomed.client() as client:
        assert client.get("/health").status_code == 200
        ready = client.get("/ready")
        assert ready.status_code == 503
        assert "probe: failed (SystemExit: the thread was told to die)" in ready.json()["error"]
        assert ask(client, "later").status_code == 503
        assert ask(client, "later", "random").status_code == 200, "the other grouper has its own thread"
        assert {entry["name"]: entry["ready"] for entry in client.get("/v1/groupers").json()} == {
            "probe": False,
            "random": True,
        }
        assert 'sft_go_grouper_ready{grouper="probe"} 0.0' in client.get("/metrics").text
    (failure,) = [line for line in map(json.loads, doomed.logged().splitlines()) if line["event"] == "grouper_failed"]
    assert failure["level"] == "error"
    assert failure["reason"] == "the thread was told to die"
    assert any("probes.py" in frame for frame in failure["stack"])
    assert doomed.process.poll() is None


def test_a_backend_that_no_longer_works_is_not_ready(doomed):
    with doomed.client() as client:
        assert ask(client, BREAK).status_code == 503
        assert client.get("/ready").status_code == 503
        assert "device is lost" in client.get("/ready").json()["error"]


def test_one_bad_document_harms_nobody_else(probes):
    thread, _ = in_background(probes, SLEEP)
    requests = [in_background(probes, text) for text in ("before", FAIL, "after")]
    for running, _ in requests:
        running.join()
    thread.join()
    assert [answers[0].status_code for _, answers in requests] == [200, 500, 200]
    with probes.client() as client:
        assert client.get("/ready").status_code == 200
        refused = ask(client, ["fine", REFUSE])
    assert refused.status_code == 422
    assert refused.json()["error"] == "input 1: refused on demand"


def test_a_client_that_goes_away_costs_no_forward(probes):
    before, abandoned = metric(probes, "sft_go_batch_inputs_sum"), metric(probes, "sft_go_abandoned_inputs_total")
    thread, _ = in_background(probes, SLEEP)
    with pytest.raises(httpx.ReadTimeout), httpx.Client(base_url=probes.url, timeout=0.3) as client:
        ask(client, ["gone one", "gone two", "gone three"])
    thread.join()
    with probes.client() as client:
        assert ask(client, "still here").status_code == 200
    assert metric(probes, "sft_go_abandoned_inputs_total") - abandoned == 3
    assert metric(probes, "sft_go_batch_inputs_sum") - before == 2  # the one that slept and the one still here
    assert '"status": 499' in probes.logged()


def test_a_full_queue_is_429_and_recovers(probes):
    thread, _ = in_background(probes, f"{SLEEP} {SLEEP} {SLEEP}")  # long enough on a busy machine as well
    with probes.client() as client:
        waiting = [in_background(probes, f"waiting {number}", 0.1) for number in range(3)]
        refused = ask(client, ["one", "two"])
        assert refused.status_code == 429, refused.text
        assert refused.json()["error_type"] == "overloaded"
        assert refused.headers["retry-after"] == "1"
        assert metric(probes, "sft_go_queue_depth") == 3
        thread.join()
        for running, answers in waiting:
            running.join()
            assert answers[0].status_code == 200
        assert ask(client, ["one", "two"]).status_code == 200


def test_sigterm_finishes_what_was_taken_and_exits_zero(doomed):
    thread, answers = in_background(doomed, SLEEP)
    second, more = in_background(doomed, "queued")
    assert doomed.terminate() == 0, doomed.logged()
    thread.join()
    second.join()
    assert [answers[0].status_code, more[0].status_code] == [200, 200]
    with pytest.raises(httpx.ConnectError):
        httpx.get(doomed.url + "/health")
    assert json.loads(doomed.logged().splitlines()[-1])["level"] == "info"


def test_metrics_count_what_happened(probes):
    def values() -> list[float]:
        with probes.client() as client:
            lines = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if line[0] != "#")
        names = (
            'sft_go_requests_total{method="POST",path="/v1/score",status="200"}',
            'sft_go_requests_total{method="GET",path="other",status="404"}',
            'sft_go_request_seconds_count{path="/v1/score"}',
            'sft_go_batch_inputs_sum{grouper="probe"}',
            'sft_go_tokens_total{grouper="probe"}',
        )
        return [float(lines.get(name, 0)) for name in names]

    before = values()
    with probes.client() as client:
        answers = [ask(client, ["one", "two"]) for _ in range(3)]
        client.get("/v1/unknown/path")
    tokens = sum(len(result["tokens"]) for answer in answers for result in answer.json()["results"])
    assert [now - then for now, then in zip(values(), before, strict=True)] == [3, 1, 3, 6, tokens]
    assert metric(probes, "sft_go_queue_depth") == 0


def test_logs_are_json_and_hold_no_texts(probes):
    secret = "Zanzibarquark"
    already = len(probes.logged().splitlines())
    with probes.client() as client:
        ask(client, f"{secret} {FAIL}")
        ask(client, [{"role": secret, "content": secret}])
        ask(client, secret)
        client.post(
            "/v1/score", content=f'{{"inputs": "{secret}'.encode(), headers={"Content-Type": "application/json"}
        )
        client.get(f"/{secret}?text={secret}")
    until(
        lambda: '"status": 404' in "".join(probes.logged().splitlines()[already:])
    )  # written after the answer has left
    lines = [json.loads(line) for line in probes.logged().splitlines()[already:]]
    assert secret not in probes.logged()
    requests = [line for line in lines if line["event"] == "request"]
    assert [line["status"] for line in requests] == [500, 422, 200, 422, 404]
    assert requests[2]["inputs"] == 1
    assert requests[2]["tokens"] > 2
    assert all({"time", "level", "event"} <= set(line) for line in lines)


def test_uvicorn_starts_the_same_app_from_variables(tmp_path, sample_tokenizer):
    running = Server(tmp_path / "log")
    running.environment |= {"SFT_GO_TOKENIZER": str(sample_tokenizer), "SFT_GO_GROUPERS": "random"}
    running.command = [sys.executable, "-m", "uvicorn", "services.app:create_app", "--factory"]
    running.command += ["--port", str(running.port)]
    with running, running.wait().client() as client:
        assert ask(client, "hello", "random").status_code == 200
        until(lambda: '"event": "request"' in running.logged())  # written after the answer has left


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "found neither"),
        (("--state", "nowhere"), "found no such directory"),
        (("--tokenizer", "SAMPLE", "--grouper", "tfidf"), "it needs a shard directory"),
        (("--tokenizer", "SAMPLE", "--grouper", "nonsense"), "expected one of"),
        (("--tokenizer", "SAMPLE"), "no grouper to serve"),
        (("--tokenizer", "SAMPLE", "--grouper", "probe", "--max-queue", "0"), "SFT_GO_MAX_QUEUE"),
        (("--tokenizer", "SAMPLE", "--compressor-model", "nowhere/at-all"), "nowhere/at-all"),
    ],
)
def test_wrong_settings_end_the_process_with_a_sentence(tmp_path, sample_tokenizer, flags, message):
    known = [str(sample_tokenizer) if flag == "SAMPLE" else flag for flag in flags]
    with Server(tmp_path / "log", *known) as running:
        assert running.process.wait(120) == 1, running.logged()
    (line,) = [line for line in running.logged().splitlines() if line.startswith("Error: ")]
    assert message in line
    assert "Traceback" not in running.logged()
