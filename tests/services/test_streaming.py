"""Answers in lines: the same scores as the plain answer, in pieces; failures are lines; clients that go are noticed."""

import json
import time

import pytest

from services.streaming import TOKENS_PER_LINE, is_asked_for
from tests.services.running import Server

LINES = {"Accept": "application/x-ndjson"}
TEXTS = ["The heart pumps blood.", "word " * 700, "Two and two is four."]


def ask(server: Server, inputs: object, grouper: str, **options: object) -> list[dict]:
    with server.client() as client:
        response = client.post("/v1/score", json={"inputs": inputs, "grouper": grouper, **options}, headers=LINES)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.text.splitlines()]


@pytest.mark.parametrize("grouper", ["tfidf", "random", "llmlingua2", "rho1"])
def test_lines_hold_what_the_plain_answer_holds(server, grouper):
    options = {} if grouper == "rho1" else {"eta": 0.7}
    with server.client() as client:
        plain = client.post("/v1/score", json={"inputs": TEXTS, "grouper": grouper, **options}).json()
    lines = ask(server, TEXTS, grouper, **options)
    assert lines[0] == {**{name: plain[name] for name in ("grouper", "kind", "tokenizer", "eta", "ties")}, "inputs": 3}
    assert lines[-1] == {"done": True}
    results: list[dict] = []
    for line in lines[1:-1]:
        if "text" in line:
            assert line["input"] == len(results)
            results.append({**line, "tokens": []})
        else:
            assert line["first"] == len(results[-1]["tokens"])
            assert len(line["tokens"]) <= TOKENS_PER_LINE
            results[-1]["tokens"] += line["tokens"]
    for result, expected in zip(results, plain["results"], strict=True):
        assert result.pop("num_tokens") == len(expected["tokens"])
        del result["input"]
        for token, other in zip(result["tokens"], expected["tokens"], strict=True):
            assert token.pop("score") == pytest.approx(other.pop("score"), abs=1e-5)
            assert token == other
        if result["threshold"] is not None:
            assert result.pop("threshold") == pytest.approx(expected.pop("threshold"), abs=1e-5)
        assert {**result, "tokens": 0} == {**expected, "tokens": 0}
    assert len(results[1]["tokens"]) > TOKENS_PER_LINE


def test_an_input_that_fails_is_a_line_and_the_others_go_on(tmp_path, shards):
    with Server(tmp_path / "log", "--state", shards, "--grouper", "probe") as running:
        running.wait()
        lines = ask(running, ["fine", "please fail", "please refuse", "fine too"], "probe")
        errors = {line["input"]: line["error_type"] for line in lines if "error" in line}
        assert errors == {1: "internal", 2: "invalid_input"}
        assert [line["text"] for line in lines if "text" in line] == ["fine", "fine too"]
        assert lines[-1] == {"done": True}


def test_the_first_input_arrives_before_the_last_is_scored_and_a_client_may_go(tmp_path, shards):
    flags = ("--state", shards, "--grouper", "probe", "--max-batch-tokens", 1)
    with Server(tmp_path / "log", *flags) as running:
        running.wait()
        body = {"inputs": ["quick", *["please sleep"] * 6], "grouper": "probe"}
        started = time.monotonic()
        with running.client() as client, client.stream("POST", "/v1/score", json=body, headers=LINES) as response:
            lines = response.iter_lines()
            assert json.loads(next(lines))["inputs"] == 7
            assert json.loads(next(lines))["text"] == "quick"
            assert time.monotonic() - started < 6, "six inputs sleep for 1.5 s each"
        with running.client() as client:  # the connection above is closed
            until = time.monotonic() + 8
            while True:
                text = client.get("/metrics").text
                counts = [line for line in text.splitlines() if line.startswith("sft_go_abandoned_inputs_total")]
                if counts and float(counts[0].split()[-1]) >= 4:
                    break
                assert time.monotonic() < until, text
                time.sleep(0.1)


def test_errors_before_the_first_line_have_their_status(server):
    with server.client() as client:
        response = client.post("/v1/score", json={"inputs": "a", "grouper": "nobody"}, headers=LINES)
    assert response.status_code == 422
    assert response.json()["error_type"] == "invalid_input"


@pytest.mark.parametrize(
    ("accept", "asked"),
    [
        ("application/x-ndjson", True),
        ("application/json, Application/X-NDJSON;q=0.5", True),
        ("application/x-ndjson;q=0", False),
        ("*/*", False),
        ("", False),
    ],
)
def test_accept(accept, asked):
    assert is_asked_for(accept) is asked
