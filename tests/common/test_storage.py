"""One API, the same answers from a disk, a real S3 server, memory, and a file system that moves files into place."""

import hashlib
import json
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from common.errors import UserError
from common.storage import Location, StorageError, is_temporary, is_url, locate


@pytest.fixture(params=["disk", "s3", "memory", "moved"])
def place(request, tmp_path) -> Location:
    """A place where nothing is yet. `local://` is fsspec's own local file system: the path of sftp and the like."""
    kinds = {"disk": str(tmp_path / "x"), "memory": f"memory://{tmp_path}/x", "moved": f"local://{tmp_path}/y"}
    return locate(request.getfixturevalue("s3") if request.param == "s3" else kinds[request.param])


def test_names_by_hand():
    place = locate("s3://bucket/a/b/")
    assert str(place) == "s3://bucket/a/b"
    assert place.name == "b"
    assert str(place.parent) == "s3://bucket/a"
    assert str(place.parent.parent) == str(place.parent.parent.parent) == "s3://bucket"
    assert str(place / "c/d.json") == "s3://bucket/a/b/c/d.json"
    assert place.local is None
    assert place.reach == "network"
    assert locate("/a/b").local == Path("/a/b") == locate("file:///a/b").local == locate(Path("/a/b")).local
    assert locate("a") / "b" == locate("a/b")
    assert locate("memory://x").reach == "process"
    assert locate("x").reach == "machine"
    assert is_url("s3://b/o")
    assert not is_url("C:/x")
    assert not is_url("a/b:c")
    assert is_temporary(".part-00000.parquet.0a1b2c3d4e5f.tmp")
    assert not is_temporary("part-00000.parquet")


def test_what_is_written_is_there(place):
    assert not place.exists()
    assert place.names() == []
    assert place.files() == {}
    (place / "state" / "a.json").write_json({"ü": [1, None]})
    (place / "b").write_bytes(b"\x00" * 3)
    with (place / "empty").writing() as path:
        path.touch()
    assert place.is_dir()
    assert not place.is_file()
    assert (place / "b").is_file()
    assert not (place / "b").is_dir()
    assert (place / "state").is_dir()
    assert place.names() == ["b", "empty", "state"]
    text = json.dumps({"ü": [1, None]}, indent=2, ensure_ascii=False) + "\n"
    assert place.files() == {"b": 3, "empty": 0, "state/a.json": len(text.encode())}
    assert (place / "state" / "a.json").read_text() == text
    assert (place / "state" / "a.json").read_json() == {"ü": [1, None]}
    assert (place / "b").size() == 3
    assert (place / "b").sha256() == (hashlib.sha256(b"\x00" * 3).hexdigest(), 3)
    (place / "b").write_bytes(b"new")
    assert (place / "b").read_bytes() == b"new"


def test_open_files_can_be_searched(place):
    place.write_bytes(bytes(range(256)) * 9000)
    with place.open() as file:
        file.seek(-256, 2)
        assert file.read(2) == b"\x00\x01"
        file.seek(513)
        assert file.read(1) == b"\x01"


def test_missing_files(place):
    for read in (place.read_bytes, place.size, place.sha256, place.open):
        with pytest.raises(FileNotFoundError):
            read()
    place.delete()
    place.delete_tree()


def test_deleting(place):
    for name in ("a/b", "a/c", "d"):
        (place / name).write_bytes(b"x")
    (place / "d").delete()
    assert list(place.files()) == ["a/b", "a/c"]
    (place / "a").delete_tree()
    assert place.files() == {}


def test_a_block_that_fails_leaves_what_was_there(place):
    (place / "a").write_bytes(b"old")

    def fail():
        with (place / "a").writing() as path:
            path.write_bytes(b"half")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        fail()
    assert place.files() == {"a": 3}
    assert (place / "a").read_bytes() == b"old"


def test_readers_never_see_half_a_file(place):
    """A reader beside a writer that writes over and over sees one of the two contents, whole."""
    contents = [b"a" * 300_000, b"b" * 200_000]
    place.write_bytes(contents[0])
    stop = threading.Event()

    def write():
        for number in range(30):
            place.write_bytes(contents[number % 2])
        stop.set()

    thread = threading.Thread(target=write)
    thread.start()
    seen = set()
    while not stop.is_set():
        seen.add(place.read_bytes())
    thread.join()
    assert seen <= set(contents)


@pytest.mark.parametrize("place", ["disk", "s3"], indirect=True)
def test_of_many_that_create_one_comes_first(place):
    with ThreadPoolExecutor(8) as pool:
        came_first = list(pool.map(lambda number: place.create(str(number).encode()), range(8)))
    assert sum(came_first) == 1
    assert place.read_bytes() == str(came_first.index(True)).encode()
    assert not place.create(b"later")


def test_copies_between_stores(place, tmp_path, s3_environment):
    for other in (locate(tmp_path / "copy"), locate(f"s3://bucket/copy-{tmp_path.name}")):
        (place / "a").write_bytes(b"content" * 1000)
        (place / "a").copy_to(other)
        assert other.read_bytes() == b"content" * 1000
        other.copy_to(place / "back")
        assert (place / "back").size() == 7000


def test_what_is_not_json(place):
    place.write_text("{")
    with pytest.raises(UserError, match="expected JSON"):
        place.read_json()


def test_another_process_reads_it(s3):
    (locate(s3) / "a").write_bytes(b"here")
    code = "import pickle, sys; print(pickle.loads(sys.stdin.buffer.read()).read_bytes())"
    sent = pickle.dumps(locate(s3) / "a")
    assert len(sent) < 300
    result = subprocess.run([sys.executable, "-c", code], input=sent, capture_output=True, check=True)
    assert result.stdout.strip() == b"b'here'"


def test_other_processes_are_seen(s3):
    """No listing is kept: what another process writes or deletes shows at once."""
    place = locate(s3)
    (place / "a").write_bytes(b"1")
    assert place.names() == ["a"]
    code = "import sys; from common.storage import locate; p = locate(sys.argv[1]); (p / 'b').write_bytes(b'22'); "
    subprocess.run([sys.executable, "-c", code + "(p / 'a').delete()", s3], check=True)
    assert place.files() == {"b": 2}
    assert not (place / "a").exists()
    assert (place / "b").is_file()


def test_large_files_arrive_whole(s3, tmp_path):
    """Above 100 MB the client sends parts; the object appears when the last one is there."""
    place, size = locate(s3) / "large", 101 << 20
    with place.writing() as path, open(path, "wb") as file:
        file.truncate(size)
        file.write(b"head")
    assert place.size() == size
    expected = hashlib.sha256(b"head" + bytes(size - 4)).hexdigest()
    assert place.sha256() == (expected, size)


def test_refusals_say_what_to_do(s3_environment, tmp_path):
    nowhere = locate("s3://no-such-bucket/x")
    for write in (lambda: nowhere.write_bytes(b""), lambda: nowhere.create(b"")):
        with pytest.raises(StorageError, match="no such bucket or directory; make it first"):
            write()
    with pytest.raises(StorageError, match=r"zz:// cannot be read"):
        locate("zz://a/b").exists()
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(StorageError, match="cannot be written"):
        (locate(blocked) / "below").write_bytes(b"")


def test_a_missing_package_is_named():
    try:
        import gcsfs  # noqa: F401
    except ImportError:
        with pytest.raises(StorageError, match=r"pip install 'sft-go\[gcs\]'"):
            locate("gs://bucket/x").exists()
    else:
        pytest.skip("gcsfs is installed")


def test_no_credentials_and_no_server(s3_environment, monkeypatch):
    code = (
        "import os, sys; from common.storage import locate, StorageError\n"
        "try: locate('s3://bucket/x').write_bytes(b'')\n"
        "except StorageError as error: print(error)"
    )
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Give credentials" in run.stdout, run
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "AWS_ENDPOINT_URL" in run.stdout, run
