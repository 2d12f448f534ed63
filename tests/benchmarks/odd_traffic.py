"""What the service is sent by `tests.benchmarks.endurance`: right requests, odd ones, and bytes that are none.

What enters: a source of chance. What leaves: the bytes to send. The same seed gives the same bytes.
"""

import json
import random

TEXT = "the heart pumps blood and every lung takes up oxygen while two plus two is four in most of the world"
WORDS = TEXT.split()


def request(body: bytes, headers: bytes = b"Content-Type: application/json\r\n") -> bytes:
    """Return the bytes of a request to score."""
    return b"POST /v1/score HTTP/1.1\r\nHost: x\r\n%sContent-Length: %d\r\n\r\n%s" % (headers, len(body), body)


def normal(chance: random.Random, words: int = 12) -> bytes:
    """Return a request that is right, and unlike the ones before."""
    text = " ".join(chance.choices(WORDS, k=words)) + f" {chance.randrange(10**6)}"
    return request(json.dumps({"inputs": text, "grouper": "tfidf", "eta": 0.7}).encode())


def odd_request(chance: random.Random) -> bytes:
    """Return a complete request that is wrong, or right in an unusual way."""
    values = [None, 5, True, [], {}, "", " \n", "\ud800", ["a", 1], [[]], [[["a"]]], "x" * 300_000, ["y"] * 200]
    values += [[{"role": "wizard", "content": "a"}], [{"role": "user", "content": "a"}], "日本語 🙂 \u0000 \u2028", "z"]
    body = json.dumps({"inputs": chance.choice(values), "grouper": chance.choice(["tfidf", "../etc", 1, None])})
    raw = body.encode()
    kind = chance.randrange(8)
    if kind == 0:
        raw = raw[: chance.randrange(len(raw[:2000]))]
    elif kind == 1:
        raw = bytes(chance.randrange(256) for _ in range(chance.randrange(1, 400)))
    elif kind == 2:
        raw = chance.choice([b"[" * 50_000, b'{"a":' * 20_000, b'{"inputs": "a", "eta": NaN}', b"null", b""])
    elif kind == 3:
        types = [b"text/plain", b"application/json; charset=utf-16", b"", b"\xff", b"multipart/form-data; boundary=x"]
        return request(raw, b"Content-Type: " + chance.choice(types) + b"\r\nContent-Encoding: gzip\r\n")
    elif kind == 4:
        paths = [b"/v1/score", b"/%00", b"/../../etc/passwd", b"/health", b"/docs?x=" + b"a" * 3000, b"/info", b"*"]
        methods = [b"GET", b"PUT", b"DELETE", b"OPTIONS", b"HEAD", b"PATCH", b"TRACE"]
        line = chance.choice(methods) + b" " + chance.choice(paths)
        return line + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    elif kind == 5:
        return request(raw, b"Content-Type: application/json\r\nAccept: application/x-ndjson\r\n")
    return request(raw)


def odd_bytes(chance: random.Random) -> bytes:
    """Return what a client that speaks no HTTP, or breaks off, might send."""
    whole = normal(chance)
    return chance.choice(
        [
            b"",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),  # TLS
            b"GET / HTTP/9.9\r\n\r\n",
            b"\r\n" * 500,
            b"A" * 100_000,
            b"GET / HTTP/1.1\r\n" + b"X: " + b"y" * 100_000 + b"\r\n\r\n",
            whole[: chance.randrange(len(whole))],
            whole.replace(b"Content-Length: ", b"Content-Length: 9"),
            whole.replace(b"Content-Length: ", b"Content-Length: -"),
            b"POST /v1/score HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
            whole * 5,
            bytes(chance.randrange(256) for _ in range(500)),
        ]
    )
