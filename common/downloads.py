"""Directories of a store, made ready on this machine: tokenizers and models are loaded from paths.

What enters: a path or URL of a directory. What leaves: a path; for a URL, a copy in the cache, which is
$SFT_GO_CACHE or ~/.cache/sft-go. A copy's name depends on the URL and on what the store says of every file (ETag, size,
time), so that a directory that changed is fetched again; and it appears whole, so that several processes may fetch it.
"""

import hashlib
import json
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

from common.errors import UserError
from common.storage import Location, is_url, locate

CACHE = "SFT_GO_CACHE"
THREADS = 8


def cache_directory() -> Path:
    """Return where copies are kept."""
    return Path(os.environ.get(CACHE) or Path.home() / ".cache" / "sft-go")


def on_disk(name: str) -> str:
    """Return what libraries that read paths and hub ids take: a path for a URL, anything else as it is.

    Raises:
        UserError: nothing is there, or the store refuses.
    """
    return str(local_copy(name)) if is_url(name) else name


@lru_cache(maxsize=64)
def local_copy(place: str) -> Path:
    """Return a path with the content of a directory; looked up once in each process.

    Raises:
        UserError: nothing is there, or the store refuses.
    """
    source = locate(place)
    if source.local is not None:
        return source.local
    stamps = source.stamps()
    if not stamps:
        raise UserError(f"{place}: expected a directory with files, found nothing there.")
    key = hashlib.sha256(json.dumps([str(source), stamps]).encode()).hexdigest()[:16]
    target = cache_directory() / f"{source.name}-{key}" / source.name  # the last part is how it is called
    if not target.is_dir():
        _fetch(source, list(stamps), target)
    return target


def _fetch(source: Location, names: list[str], target: Path) -> None:
    """Copy files into a new directory, which is renamed when it is complete."""
    parent = target.parent.parent
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=parent) as temporary:
        filled = Path(temporary, "new") / target.name
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda name: (source / name).copy_to(locate(filled / name)), names))
        try:
            os.rename(filled.parent, target.parent)
        except OSError:
            if not target.is_dir():  # otherwise another process was quicker
                raise
