"""A card, and round trips over a stand-in hub on this machine: shards are pushed, and trained on by hf://; records are
annotated by hf:// and by the data set's name."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest
from rich.console import Console

from annotate.run.pipeline import run
from annotate.run.settings import Settings
from annotate.views.card import write_card
from annotate.views.hub import push_shards
from common.errors import UserError

COMMIT = "c" * 40


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's API as uploading and reading data sets needs; files are kept in memory."""

    protocol_version = "HTTP/1.1"
    sets: dict[str, dict[str, bytes]] = {}  # noqa: RUF012

    @property
    def name(self):
        """The data set that is asked for: me/shards of /api/datasets/me/shards/…"""
        return "/".join(unquote(urlsplit(self.path).path).partition("datasets/")[2].split("/")[:2])

    @property
    def files(self):
        return self.sets.setdefault(self.name, {})

    def log_message(self, *_):
        pass

    def answer(self, value=None, status=200, body=None, headers=None):
        content = json.dumps(value).encode() if body is None else body
        self.send_response(status)
        for name, text in {"Content-Length": str(len(content)), "X-Repo-Commit": COMMIT, **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def entry(self, path):
        content = self.files[path]
        return {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = urlsplit(self.path).path
        if path == "/api/repos/create":
            return self.answer(
                {
                    "url": f"http://{self.headers['Host']}/datasets/me/{json.loads(body)['name']}",
                    "id": "1",
                    "name": "me/shards",
                }
            )
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if "/preupload/" in path:
            asked = json.loads(body)["files"]
            return self.answer(
                {"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in asked]}
            )
        if "/commit/" in path:
            for line in body.splitlines():
                item = json.loads(line)
                if item["key"] == "file":
                    self.files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
            return self.answer(
                {
                    "commitOid": COMMIT,
                    "commitUrl": f"http://{self.headers['Host']}/datasets/{self.name}/commit/{COMMIT}",
                }
            )
        if "/paths-info/" in path:
            from urllib.parse import parse_qs

            text = body.decode()
            wanted = json.loads(text)["paths"] if text.startswith("{") else parse_qs(text).get("paths", [])
            found = [self.entry(name) for name in wanted if name in self.files]
            folders = [n for n in wanted if n and any(file.startswith(f"{n}/") for file in self.files)]
            return self.answer(found + [{"type": "directory", "path": name, "oid": "0" * 40} for name in folders])
        return self.answer({"error": path}, 404)

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        if path.startswith(f"/api/datasets/{self.name}/tree/"):
            folder = path.split("/", 7)[7] if path.count("/") >= 7 else ""
            inside = [name for name in self.files if not folder or name.startswith(f"{folder}/")]
            if not inside:
                return self.answer({"error": "none"}, 404, headers={"X-Error-Code": "EntryNotFound"})
            recursive = "recursive=true" in self.path.lower()
            rest = {name: name[len(folder) + 1 if folder else 0 :] for name in inside}
            entries = [self.entry(name) for name, tail in rest.items() if recursive or "/" not in tail]
            parents = {name[: len(name) - len(tail)] + tail.split("/")[0] for name, tail in rest.items() if "/" in tail}
            return self.answer(entries + [{"type": "directory", "path": name, "oid": "0" * 40} for name in parents])
        if path.startswith(f"/api/datasets/{self.name}") and self.name in self.sets:
            siblings = [{"rfilename": name} for name in self.files]
            return self.answer({"id": self.name, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []})
        if path.startswith(f"/datasets/{self.name}/resolve/"):
            name = path.split("/", 6)[6]
            if name not in self.files:
                return self.answer({"error": "none"}, 404, headers={"X-Error-Code": "EntryNotFound"})
            content, status = self.files[name], 200
            headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "Accept-Ranges": "bytes"}
            if span := self.headers.get("Range"):
                first, _, last = span.removeprefix("bytes=").partition("-")
                stop = min(int(last or len(content) - 1), len(content) - 1)
                headers["Content-Range"] = f"bytes {first}-{stop}/{len(content)}"
                content, status = content[int(first) : stop + 1], 206
            return self.answer(body=content, status=status, headers=headers)
        return self.answer({"error": path}, 404)

    do_HEAD = do_GET


@pytest.fixture(scope="module")
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def shards(tmp_path_factory, sample_tokenizer):
    out = tmp_path_factory.mktemp("card") / "shards"
    settings = Settings(
        data="sample", groupers=("tfidf",), out=out, tokenizer=str(sample_tokenizer), limit=30, engine="local"
    )
    run(settings, Console(quiet=True))
    return out


def test_a_card_says_what_is_there(shards):
    import yaml

    card, example = write_card(shards, 0.7)
    text = card.read_text()
    header = yaml.safe_load(text.split("---")[1])
    assert header["configs"][0]["data_files"] == "part-*.parquet"
    assert header["size_categories"] == ["n<1K"]
    assert "| documents | 30 |" in text
    assert "`tfidf`, over" in text
    shares = [float(line.split("%")[0].split()[-1]) for line in text.splitlines() if " to " in line and "%" in line]
    assert sum(shares) == pytest.approx(100, abs=1)
    assert example.read_text().startswith("<svg")
    write_card(shards, 0.5)  # its own card is renewed
    card.write_text("# mine")
    with pytest.raises(UserError, match="was not made by `annotate card`"):
        write_card(shards, 0.7)
    card.unlink()


def in_process(code, hub, home):
    """Run code in a process of its own: the hub's address is read once, on import."""
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_test", "HF_HOME": str(home)}
    environment["HF_HUB_DISABLE_XET"] = "1"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_round_trip(shards, hub, tmp_path):
    said = in_process(
        f"import sys; sys.argv = ['annotate', 'push', {str(shards)!r}, 'me/shards']\n"
        "from annotate.cli import main\nmain()",
        hub,
        tmp_path,
    )
    assert f"/commit/{COMMIT}" in said
    names = {path.relative_to(shards).as_posix() for path in shards.rglob("*") if path.is_file()}
    pushed = Hub.sets["me/shards"]
    assert set(pushed) == names
    for name in names:
        assert pushed[name] == (shards / name).read_bytes()
    read = in_process(
        "from common.shards import ShardDirectory\n"
        "d = ShardDirectory('hf://datasets/me/shards')\n"
        "print(d.manifest.counts.documents, sum(len(t) for t in d.tables(['input_ids', 'tfidf'])))",
        hub,
        tmp_path,
    )
    assert read.split() == ["30", "30"]


def typed(package, *commands):
    """Return code that runs commands of `annotate` or `train` one after another, all of which must succeed."""
    return (
        f"import sys\nfrom {package}.cli import main\n"
        f"for words in {[[*map(str, words)] for words in commands]!r}:\n"
        f"    sys.argv = [{package!r}, *words]\n"
        "    try:\n        main()\n"
        "    except SystemExit as stop:\n        assert not stop.code, words\n"
    )


def test_shards_of_the_hub_are_trained_on(shards, hub, tmp_path):
    Hub.sets["me/trained"] = {
        path.relative_to(shards).as_posix(): path.read_bytes() for path in shards.rglob("*") if path.is_file()
    }
    flags = ("--model", "tiny", "--max_steps", "2", "--use_cpu", "--save_strategy", "no", "--output_dir")
    places = {"there": "hf://datasets/me/trained", "here": shards}
    commands = [("run", "--shards", place, *flags, tmp_path / name) for name, place in places.items()]
    in_process(typed("train", *commands), hub, tmp_path / "home")
    there, here = ((tmp_path / name / "model.safetensors").read_bytes() for name in places)
    assert there == here


def test_records_of_the_hub_are_annotated(hub, tmp_path, sample_tokenizer, sample_records):
    records = tmp_path / "first.jsonl"
    records.write_text("".join(sample_records.read_text().splitlines(keepends=True)[:20]))
    Hub.sets["me/records"] = {"data/first.jsonl": records.read_bytes()}
    places = {"url": "hf://datasets/me/records/data/first.jsonl", "name": "me/records", "here": records}
    flags = ("--tokenizer", sample_tokenizer, "--engine", "local", "--out")
    commands = [("run", "--data", place, *flags, tmp_path / name) for name, place in places.items()]
    in_process(typed("annotate", *commands), hub, tmp_path / "home")
    url, name, here = ((tmp_path / name / "part-00000.parquet").read_bytes() for name in places)
    assert url == here
    assert name == here


def test_what_is_refused(shards, tmp_path):
    with pytest.raises(UserError, match="expected owner/name"):
        push_shards(shards, "shards", False, 0.7)
    with pytest.raises(UserError, match="expected a shard directory"):
        push_shards(tmp_path, "me/shards", False, 0.7)
