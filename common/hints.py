"""What a user probably meant: the nearest of the words that there are, and whether a name is a path.

What enters: a word that was typed. What leaves: a sentence to put behind an error, or nothing.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """Return " Did you mean …?" with the nearest word, or "" where none is near."""
    near = get_close_matches(word, list(words), 1)
    return f" Did you mean {near[0]}?" if near else ""


def missing_path(name: str) -> str | None:
    """Return what is wrong with a name that can only be a path, and where no directory is; None for any other name.

    A name with one slash, such as owner/model, may belong to the hub, unless its first part is a directory here.
    """
    path = Path(name).expanduser()
    if path.is_dir() or "://" in name:
        return None
    if path.exists():
        return "is a file, expected a directory."
    is_path = name.startswith((".", "/", "~")) or name.count("/") > 1
    if not is_path and not ("/" in name and path.parent.is_dir()):
        return None
    beside = [item.name for item in path.parent.iterdir() if item.is_dir()] if path.parent.is_dir() else []
    return f"no such directory.{did_you_mean(path.name, beside)}"
