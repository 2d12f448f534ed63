"""Checkpoints of neural scorers: finding, identifying and loading them, with errors that say what to do.

What enters: what a user wrote after a flag such as `--reference-model`: a directory, a URL or a hub id. What leaves: a
revision that changes whenever the scores could, a config, a tokenizer, and a model whose every weight came from the
checkpoint. Used by the groupers that run a model. torch and transformers are imported inside the functions.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.downloads import on_disk
from common.errors import UserError
from common.files import sha256_file
from common.storage import is_url

DTYPES = ("float32", "bfloat16", "float16")
WEIGHT_PATTERNS = ("model*.safetensors", "pytorch_model*.bin")  # the order in which transformers looks for them
TOKENIZER_PATTERNS = ("tokenizer.json", "tokenizer.model", "sentencepiece.bpe.model", "spiece.model", "vocab.*")


_policy = {"safetensors_only": False}


def require_safetensors(on: bool) -> None:
    """Set for this process whether weights in PyTorch's own (pickle) format are refused; the service does so."""
    _policy["safetensors_only"] = on


@contextmanager
def hub_errors(flag: str, name: str) -> Iterator[None]:
    """Turn what transformers, the hub client and safetensors raise inside the block into a `UserError`.

    `flag` is the setting that named the checkpoint (such as "--reference-model"), `name` its value.
    """
    import pickle

    import torch
    from safetensors import SafetensorError

    try:
        yield
    except UserError:
        raise
    except torch.OutOfMemoryError as error:
        raise UserError(f"{flag} {name}: the model does not fit into the device's memory ({_first(error)}).") from error
    except (OSError, ValueError, KeyError, RuntimeError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        if is_url(name) or Path(name).is_dir():
            raise UserError(
                f"{flag} {name}: the checkpoint does not load ({type(error).__name__}: {_first(error)}). Expected what "
                "save_pretrained() writes: config.json, complete weight files and the tokenizer's files. Save or "
                "download it again, or give another checkpoint."
            ) from error
        raise UserError(_explain_hub(flag, name, error)) from error


def is_local(name: str, flag: str) -> bool:
    """Return True for a directory, here or by URL, False for what can only be a hub id.

    Raises:
        UserError: it is neither: a file, or a path where nothing is.
    """
    path = Path(name)
    if is_url(name) or path.is_dir():
        return True
    if path.exists():
        raise UserError(f"{flag} {name}: expected a checkpoint directory or a hub id, found a file.")
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name) or (path.parent.name and path.parent.is_dir()):
        raise UserError(f"{flag} {name}: no such directory. Expected a checkpoint directory or a hub id (owner/model).")
    return False


def absolute_name(name: str, flag: str) -> str:
    """Return the name of a checkpoint as every worker finds it: a path from the root, a URL or a hub id as it is."""
    return str(Path(name).resolve()) if is_local(name, flag) and not is_url(name) else name


def checkpoint_revision(name: str, flag: str, with_tokenizer: bool = False) -> str:
    """Return what identifies the checkpoint's content; equal revisions mean equal weights.

    A hub id gives the commit hash that its default branch has now (from the local cache where the hub is out of reach).
    A directory gives "sha256:" and a hash over its config and weight files, and with `with_tokenizer` over the files
    of its tokenizer too (for models that see text, not ids).

    Raises:
        UserError: no such checkpoint, or a directory without a config or with missing weight files.
    """
    if not is_local(name, flag):
        from huggingface_hub import hf_hub_download

        with hub_errors(flag, name):
            return Path(hf_hub_download(name, "config.json")).parent.name
    directory = Path(on_disk(name))
    files = [directory / "config.json", *weight_files(directory, flag)]
    if with_tokenizer:
        files += tokenizer_files(directory)
        files += [path for path in [directory / "tokenizer_config.json"] if path.is_file()]
    # By name, so that a copy of the directory elsewhere has the same revision.
    lines = [f"{path.name} {sha256_file(path)}\n" for path in sorted(files)]
    return "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()


def weight_files(directory: Path, flag: str) -> list[Path]:
    """Return the weight files of a checkpoint directory, all that its index (if any) names.

    Raises:
        UserError: there is no config, or there are no weights, or some of them are missing.
    """
    if not (directory / "config.json").is_file():
        if (directory / "adapter_config.json").is_file():
            raise UserError(
                f"{flag} {directory}: found an adapter (adapter_config.json), expected a whole model. "
                "Merge it into its base model first (merge_and_unload() and save_pretrained() in peft)."
            )
        raise UserError(
            f"{flag} {directory}: no config.json there. Expected a checkpoint as save_pretrained() writes it; "
            "for a training run, give the directory that holds config.json, such as its last checkpoint-<step>."
        )
    for pattern in WEIGHT_PATTERNS:
        present = sorted(directory.glob(pattern))
        for index in directory.glob(pattern + ".index.json"):
            try:
                named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            except (ValueError, KeyError, AttributeError) as error:
                raise UserError(f"{flag} {directory}: {index.name} is not an index of weight files.") from error
            missing = sorted(named - {path.name for path in present})
            if missing:
                raise UserError(
                    f"{flag} {directory}: {index.name} names weight files that are missing: {', '.join(missing)}. "
                    "Copy or download the checkpoint again."
                )
        if present and present[0].suffix == ".bin" and _policy["safetensors_only"]:
            raise UserError(
                f"{flag} {directory}: expected weights in safetensors files, found only {present[0].name}, a format "
                "that can run programs when it is loaded. Save the model again with save_pretrained(); or, where you "
                "trust the file, set SFT_GO_ALLOW_PICKLE=1 (--allow-pickle)."
            )
        if present:
            return present
    raise UserError(f"{flag} {directory}: no weight files there (expected {' or '.join(WEIGHT_PATTERNS)}).")


def tokenizer_files(directory: Path) -> list[Path]:
    """Return the files of a checkpoint directory that hold a vocabulary; empty where none does."""
    return sorted({path for pattern in TOKENIZER_PATTERNS for path in directory.glob(pattern)})


def load_config(name: str, flag: str, revision: str | None = None) -> Any:
    """Return the checkpoint's `transformers` config; `revision` as `checkpoint_revision` gave it.

    Raises:
        UserError: the checkpoint cannot be found, or its architecture is unknown here or needs code of its own.
    """
    from transformers import AutoConfig

    is_local(name, flag)
    with hub_errors(flag, name):
        return AutoConfig.from_pretrained(on_disk(name), revision=hub_revision(revision), trust_remote_code=False)


def load_tokenizer(name: str, flag: str, revision: str | None = None) -> Any:
    """Return the checkpoint's own tokenizer.

    Raises:
        UserError: it has none, or it cannot be loaded.
    """
    from transformers import AutoTokenizer

    if is_local(name, flag) and not tokenizer_files(Path(on_disk(name))):
        raise UserError(
            f"{flag} {name}: the directory holds no tokenizer files (such as tokenizer.json). Save the tokenizer "
            "that it was trained with there: AutoTokenizer.from_pretrained(<model>).save_pretrained(<directory>)."
        )
    with hub_errors(flag, name):
        return AutoTokenizer.from_pretrained(on_disk(name), revision=hub_revision(revision), trust_remote_code=False)


def load_model(auto_class: Any, name: str, flag: str, revision: str | None, dtype: str, device: str) -> Any:
    """Return the checkpoint's model in evaluation mode, in `dtype`, on `device`, all weights from the checkpoint.

    `auto_class` is such as `transformers.AutoModelForCausalLM`. `transformers` fills weights that a checkpoint lacks
    with random numbers; here that is an error.

    Raises:
        UserError: the device is not there, the checkpoint does not load, or it lacks weights of this architecture.
    """
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            f"--device {device}: torch finds no CUDA device here. Use --device cpu, or a machine with a GPU."
        )
    with hub_errors(flag, name):
        model, info = auto_class.from_pretrained(
            on_disk(name),
            revision=hub_revision(revision),
            dtype=getattr(torch, dtype),
            trust_remote_code=False,
            use_safetensors=True if _policy["safetensors_only"] else None,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # named below, with what to do
        )
        lacking = sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
        if lacking or info["error_msgs"]:
            raise UserError(
                f"{flag} {name}: the checkpoint does not load as {type(model).__name__}: {len(lacking)} weights are "
                f"missing or of another shape, such as {', '.join(lacking[:3])}. They would be random numbers. "
                "Give a checkpoint of the whole model, with the head that this grouper needs."
            )
        return model.eval().requires_grad_(False).to(device)


def hub_revision(revision: str | None) -> str:
    """Return what `from_pretrained` takes as revision: the commit, or "main" for a directory's content hash."""
    return "main" if revision is None or revision.startswith("sha256:") else revision


def resolve_device(device: str | None) -> str:
    """Return the device that a model will run on: the given one, or CUDA where there is a GPU, or the CPU.

    Only the wording is checked: the driver may have no GPU where the workers have one.

    Raises:
        UserError: it is not "cpu", "cuda" or "cuda:<number>".
    """
    if device is None:
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise UserError(f"--device {device}: expected cpu, cuda or cuda:<number>.")
    return device


def resolve_dtype(dtype: str | None, device: str) -> str:
    """Return the name of the dtype that a model runs in: the given one, or bfloat16 on a GPU and float32 on a CPU.

    Raises:
        UserError: it is none of `DTYPES`.
    """
    if dtype is None:
        return "bfloat16" if device.startswith("cuda") else "float32"
    if dtype not in DTYPES:
        raise UserError(f"--dtype {dtype}: expected one of {', '.join(DTYPES)}.")
    return dtype


def _explain_hub(flag: str, name: str, error: Exception) -> str:
    """Say what went wrong with a hub id."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    causes: list[BaseException] = [error]
    while cause := causes[-1].__cause__ or causes[-1].__context__:
        causes.append(cause)
    where = f"{flag} {name}:"
    local = f"Or give a local directory: hf download {name} --local-dir <dir>, then {flag} <dir>."
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        return f"{where} the model is gated on the hub. Ask for access on its page and log in (hf auth login). {local}"
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        return f"{where} neither a directory here nor a model on the hub that you may read (hf auth login). {local}"
    if any(isinstance(cause, ConnectionError | FileNotFoundError) for cause in causes) or "connect" in str(error):
        offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
        why = "HF_HUB_OFFLINE is set" if offline else "the hub cannot be reached"
        return f"{where} wanted the model from the hub, but it is not in the local cache and {why}. {local}"
    return f"{where} the checkpoint does not load ({type(error).__name__}: {_first(error)}). {local}"


def _first(error: BaseException) -> str:
    """Return the first line of an error's text."""
    return (str(error).strip().splitlines() or ["no message"])[0][:300]
