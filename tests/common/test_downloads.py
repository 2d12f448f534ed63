"""Directories of a store on this machine: whole, named after their content, once for all processes."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from common import downloads
from common.downloads import local_copy, on_disk
from common.errors import UserError
from common.storage import locate


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(downloads.CACHE, str(tmp_path / "cache"))
    local_copy.cache_clear()
    yield tmp_path / "cache"
    local_copy.cache_clear()


def fill(url: str, **files: str) -> None:
    for name, text in files.items():
        (locate(url) / name.replace("__", "/")).write_text(text)


def test_paths_and_hub_ids_stay(tmp_path):
    assert on_disk("owner/model") == "owner/model"
    assert on_disk("models/mine") == "models/mine"
    assert local_copy(str(tmp_path)) == tmp_path
    assert on_disk(f"file://{tmp_path}") == str(tmp_path)


def test_a_directory_is_copied_whole_and_keeps_its_name(s3, cache):
    fill(s3, config="1", deep__er="2")
    path = local_copy(s3)
    assert path.name == locate(s3).name
    assert path.is_relative_to(cache)
    assert {str(p.relative_to(path)): p.read_text() for p in path.rglob("*") if p.is_file()} == {
        "config": "1",
        "deep/er": "2",
    }
    assert [p.name for p in cache.iterdir()] == [path.parent.name]


def test_what_changed_is_fetched_again_and_what_did_not_is_not(s3, monkeypatch):
    fill(s3, a="1")
    first = local_copy(s3)
    local_copy.cache_clear()
    monkeypatch.setattr(downloads, "_fetch", lambda *_: pytest.fail("fetched again"))
    assert local_copy(s3) == first
    monkeypatch.undo()
    fill(s3, a="2")
    local_copy.cache_clear()
    second = local_copy(s3)
    assert (second / "a").read_text() == "2"
    assert second.name == first.name


def test_many_at_once(s3, cache):
    fill(s3, **{f"f{number}": str(number) for number in range(10)})
    code = "import sys; from common.downloads import local_copy; print(local_copy(sys.argv[1]))"

    def fetch(_) -> str:
        return subprocess.run([sys.executable, "-c", code, s3], capture_output=True, text=True, check=True).stdout

    with ThreadPoolExecutor(3) as pool:
        paths = set(pool.map(fetch, range(3)))
    assert len(paths) == 1
    assert len(list(Path(paths.pop().strip()).iterdir())) == 10
    assert len(list(cache.iterdir())) == 1


def test_nothing_there(s3):
    with pytest.raises(UserError, match="expected a directory with files, found nothing there"):
        local_copy(s3)
