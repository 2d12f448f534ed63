"""What is to be evaluated: a run, every finished run of a sweep or a directory, or a checkpoint from anywhere.

What enters: one word. What leaves: a `Checkpoint` each, with the folder where its results belong, and a line for each
run that is left out. A checkpoint's hash is over the files that decide what it answers, so results of another one under
the same name are never taken for its own.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError
from common.files import read_json, sha256_file

SWEEP_NAME, RUN_NAME = "sweep.json", "run.json"
ADAPTER_NAME = "adapter_config.json"
WEIGHTS = ("model*.safetensors", "pytorch_model*.bin", "adapter_model*.safetensors", "adapter_model*.bin")
DECISIVE = (
    *WEIGHTS,
    "config.json",
    ADAPTER_NAME,
    "generation_config.json",
    "tokenizer*",
    "*token*.json",
    "chat_template*",
)


@dataclass(frozen=True)
class Checkpoint:
    """One model to evaluate."""

    name: str  # as said, or the run's place in its sweep
    model: str  # a directory, or a hub id
    out: Path  # results go under it
    adapter: str | None = None  # the directory of a LoRA adapter on `model`

    @property
    def tokenizer(self) -> str:
        """Where its tokenizer is."""
        own = self.adapter and (Path(self.adapter) / "tokenizer.json").is_file()
        return self.adapter if own else self.model

    def content_hash(self) -> str:
        """Return what names its content, hexadecimal; of a hub's checkpoint the id and the commit.

        Raises:
            UserError: it is neither a directory nor to be had from the hub.
        """
        parts = [_directory_hash(Path(part)) if Path(part).is_dir() else _commit(part) for part in self._parts()]
        return parts[0] if len(parts) == 1 else hashlib.sha256("+".join(parts).encode()).hexdigest()

    def _parts(self) -> list[str]:
        return [part for part in (self.model, self.adapter) if part]


def find_checkpoints(target: str, out: str | None) -> tuple[list[Checkpoint], list[str]]:
    """Return what `target` stands for, and what is left out of it, a line each.

    Raises:
        UserError: there is nothing there, its weights are gone, or results have no place.
    """
    path = Path(target)
    if (path / SWEEP_NAME).is_file():
        if out:
            raise UserError(f"--out: results of a sweep go beside each run of {path}; remove the flag.")
        return _of_runs(path / "runs", "*/*")
    is_run = (path / RUN_NAME).is_file()
    if not is_run and not out and next(path.glob(f"*/{RUN_NAME}"), None):  # such as one point of a sweep
        return _of_runs(path, "*")
    if path.is_dir():
        if not is_run and not out:
            raise UserError(f"{path}: not a run's directory (no {RUN_NAME}); say with --out where its results go.")
        return [_of_directory(path, str(path), Path(out) if out else path)], []
    if path.is_absolute() or target.startswith((".", "~")) or target.count("/") != 1:
        raise UserError(
            f"{target}: expected the directory of a run, a sweep or a checkpoint, or a hub id; found no such directory."
        )
    if not out:
        raise UserError(f"{target}: a hub's checkpoint; say with --out where its results go.")
    return [Checkpoint(target, target, Path(out))], []


def _of_runs(path: Path, pattern: str) -> tuple[list[Checkpoint], list[str]]:
    found, left_out = [], []
    for directory in sorted(path for path in path.glob(pattern) if path.is_dir()):
        name = str(directory.relative_to(path))
        if not (directory / RUN_NAME).is_file():
            left_out.append(f"{name}: not finished")
        elif not _has_weights(directory):
            left_out.append(f"{name}: its weights are gone (a sweep with --keep metrics keeps none)")
        else:
            found.append(_of_directory(directory, name, directory))
    if not found:
        listed = "".join(f"\n  - {line}" for line in left_out)
        raise UserError(f"{path}: expected finished runs with their weights in it, found none.{listed}")
    return found, left_out


def _of_directory(path: Path, name: str, out: Path) -> Checkpoint:
    if not _has_weights(path):
        raise UserError(
            f"{path}: no weights of a checkpoint there ({', '.join(WEIGHTS)}). They were removed, or never written; "
            "train again, or name the directory that holds them."
        )
    adapter = path / ADAPTER_NAME
    if not adapter.is_file():
        return Checkpoint(name, str(path), out)
    base = read_json(adapter).get("base_model_name_or_path")
    if not base or (Path(base).is_absolute() and not Path(base).is_dir()):
        raise UserError(f"{path}: a LoRA adapter on {base}, which is not there. Put the base model back to that place.")
    return Checkpoint(name, base, out, str(path))


def _has_weights(path: Path) -> bool:
    return any(next(path.glob(pattern), None) for pattern in WEIGHTS)


def _directory_hash(path: Path) -> str:
    files = {file.name: file for pattern in DECISIVE for file in path.glob(pattern) if file.is_file()}
    content = {name: sha256_file(file) for name, file in sorted(files.items())}
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _commit(name: str) -> str:
    from transformers.utils import cached_file

    try:
        file = Path(cached_file(name, "config.json"))
    except (OSError, ValueError) as error:
        first = str(error).strip().partition("\n")[0]
        raise UserError(f"{name}: no such directory, and not to be had from the hub ({first}).") from error
    return hashlib.sha256(f"{name}@{file.resolve().parent.name}".encode()).hexdigest()
