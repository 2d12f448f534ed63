"""Requests that are wrong, hostile or too large: each its documented status, in one shape, and the server lives on."""

import json
import socket

import httpx
import pytest

from services.errors import STATUSES
from tests.services.running import Server

DEEP = 100_000
JSON = {"Content-Type": "application/json"}


def post(server: Server, content: bytes, headers: dict[str, str] | None = None) -> httpx.Response:
    with server.client() as client:
        return client.post("/v1/score", content=content, headers=JSON if headers is None else headers)


def check(response: httpx.Response, status: int) -> str:
    """Check an error's status and shape; return its sentence."""
    assert response.status_code == status, response.text[:500]
    assert set(response.json()) == {"error", "error_type"}
    assert STATUSES[response.json()["error_type"]] == status
    assert len(response.json()["error"]) < 500, "an error does not repeat what was sent"
    return response.json()["error"]


def request(inputs: object, **options: object) -> bytes:
    return json.dumps({"inputs": inputs, "grouper": "tfidf", **options}).encode()


WRONG = {
    "an empty body": b"",
    "no JSON": b"inputs=text",
    "cut JSON": b'{"inputs": "a"',
    "a list": b"[1]",
    "null": b"null",
    "no inputs": b"{}",
    "null inputs": request(None),
    "a number": request(5),
    "a boolean": request(True),
    "an object": request({"text": "a"}),
    "no input at all": request([]),
    "an empty text": request(""),
    "white space": request(" \n\t"),
    "a number among texts": request(["a", 1]),
    "an empty conversation": request([[]]),
    "a nested list": request([[["a"]]]),
    "a message without a role": request([{"content": "a"}]),
    "a message with a number": request([{"role": "user", "content": 1}]),
    "an unknown role": request([{"role": "wizard", "content": "a"}]),
    "no response": request([{"role": "user", "content": "a"}]),
    "an empty response": request([{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}]),
    "an unknown field": request("a", model="/etc/passwd"),
    "an unknown grouper": request("a").replace(b"tfidf", b"../../etc"),
    "eta of one": request("a", eta=1),
    "eta below zero": request("a", eta=-0.1),
    "eta as text": request("a", eta="0.5"),
    "eta as boolean": request("a", eta=True),
    "NaN": b'{"inputs": "a", "grouper": "tfidf", "eta": NaN}',
    "a huge number": b'{"inputs": "a", "grouper": "tfidf", "eta": 1e999}',
    "a huge integer": b'{"inputs": "a", "grouper": "tfidf", "eta": ' + b"9" * 10_000 + b"}",
    "unknown ties": request("a", ties="coin"),
    "a lone surrogate": request("a \ud800 b"),
    "a lone surrogate in a message": request(
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "\udfff"}]
    ),
    "a lone surrogate as grouper": b'{"inputs": "a", "grouper": "\\ud800"}',
    "Latin-1": '{"inputs": "café", "grouper": "tfidf"}'.encode("latin-1"),
    "UTF-16": request("café").decode().encode("utf-16"),
    "random bytes": bytes(range(256)),
    "deep lists": b'{"inputs": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    "deep objects": b'{"a": ' * DEEP + b"1" + b"}" * DEEP,
    "open lists": b"[" * DEEP,
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_requests_are_422(server, name):
    check(post(server, WRONG[name]), 422)


FINE = [
    "<script>alert(1)</script>",
    "<!-- <script> --> ]]> </style></script>",
    "😀👩‍👩‍👧🏳️‍🌈 flags 🇩🇪",
    "a\x00b\x01c\x7f",
    "\u202eright to left\u202c \u2028 \u2029 \ufeff \uffff",
    "e" + "\u0301" * 500,
    "<|bos|><|eos|> <s> </s> [CLS] {{ x }} {% raw %} ${y} %s %n",
    "\\ \" ' ; DROP TABLE tokens; --",
    "\U0010ffff",
]


@pytest.mark.parametrize("text", FINE)
@pytest.mark.parametrize("grouper", ["tfidf", "llmlingua2", "rho1"])
def test_odd_texts_are_scored_like_any_other(server, text, grouper):
    response = post(server, json.dumps({"inputs": text, "grouper": grouper}).encode())
    assert response.status_code == 200, response.text
    (result,) = response.json()["results"]
    assert result["text"] == text
    # Text that reads like a special token stays text.
    assert [token["text"] for token in result["tokens"]].count("<|bos|>") == 1


def test_sizes_over_the_limits_are_413(server):
    assert "SFT_GO_MAX_INPUTS" in check(post(server, request(["a"] * 10_000)), 413)
    assert "SFT_GO_MAX_INPUT_CHARACTERS" in check(post(server, request("a" * 1_000_000)), 413)
    assert "SFT_GO_MAX_REQUEST_TOKENS" in check(post(server, request(["a b " * 5000] * 20)), 413)
    assert "SFT_GO_MAX_BODY_BYTES" in check(post(server, request("a" * 5_000_000)), 413)


def test_a_body_without_length_is_counted_as_it_comes(server):
    def parts():
        yield b'{"inputs": "'
        for _ in range(100):
            yield b"a" * 100_000

    with server.client() as client:
        check(client.post("/v1/score", content=parts(), headers=JSON), 413)


def test_a_wrong_length_does_not_hurt(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n{")
        answer = connection.recv(4096)
    assert b"413" in answer.split(b"\r\n")[0] or b"400" in answer.split(b"\r\n")[0]
    with server.client() as client:
        assert client.get("/health").status_code == 200


def test_a_megabyte_of_one_character_where_it_is_allowed(tmp_path, shards):
    environment = {"SFT_GO_MAX_INPUT_CHARACTERS": "1000000"}
    with Server(tmp_path / "log", "--state", shards, "--grouper", "tfidf", environment=environment) as running:
        running.wait()
        for text in ("a" * 1_000_000, " " * 999_999 + "a", "\n" * 200_000 + "a", "0" * 200_000):
            response = post(running, request(text))
            assert response.status_code == 200
            (result,) = response.json()["results"]
            assert text.startswith(result["text"])
            assert result["truncated"] or result["text"] == text


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "application/json; charset=latin-1"},
        {**JSON, "Content-Encoding": "gzip"},
        {"Content-Type": ""},
    ],
)
def test_other_media_types_are_415(server, headers):
    check(post(server, request("a"), headers), 415)


def test_utf8_may_be_named_and_marked(server):
    assert post(server, request("a"), {"Content-Type": 'Application/JSON; charset="UTF-8"'}).status_code == 200
    assert post(server, b"\xef\xbb\xbf" + request("a")).status_code == 200


def test_paths_and_methods(server):
    with server.client() as client:
        check(client.get("/nothing"), 404)
        check(client.get("/v1/score/../../etc/passwd"), 404)
        check(client.get("/v1/score"), 405)
        check(client.delete("/health"), 405)


def test_a_key_is_asked_for_where_one_is_set(tmp_path, shards):
    environment = {"SFT_GO_API_KEY": "s3cret-ключ"}
    body = request("a")
    with Server(tmp_path / "log", "--state", shards, "--grouper", "tfidf", environment=environment) as running:
        running.wait()
        for value in (None, "", "Bearer", "Bearer wrong", "Basic s3cret", "s3cret", "Bearer s3cret-"):
            headers = {**JSON, **({} if value is None else {"Authorization": value})}
            check(post(running, body, headers), 401)
            with running.client(headers=headers) as client:
                check(client.get("/v1/groupers"), 401)
                check(client.get("/info"), 401)
        with running.client() as client:
            assert [client.get(path).status_code for path in ("/", "/docs", "/health", "/ready")] == [200] * 4
            check(client.get("/metrics"), 401)
        # Header bytes are Latin-1 on the wire; the key is UTF-8.
        right = {**JSON, "Authorization": "Bearer s3cret-ключ".encode().decode("latin-1")}
        raw = [(name.encode(), value.encode("latin-1")) for name, value in right.items()]
        response = httpx.post(f"{running.url}/v1/score", content=body, headers=raw)
        assert response.status_code == 200, response.text
        assert "s3cret" not in running.logged()
