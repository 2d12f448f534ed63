"""How fast a run trains: in each log line, at the end, and in `run.json`.

What enters: a trainer's steps as they end, with the tokens that they held. What leaves:

    tokens_per_s             tokens that are no padding, prompts included, over all processes
    supervised_tokens_per_s  those of them that the loss is taken over
    mfu                      model FLOPs utilisation, where the device's peak is known
    peak_memory_mib          the most that this process has held: of the device's memory, or resident on a CPU

MFU counts 6 FLOPs a token for each trained weight that multiplies (4 for a frozen one, which needs no gradient of its
own), the LM head included and the embedding look-up not; 6 × width × length for a token's causal attention in each
layer, forward and backward; and nothing that is computed twice. The peak is the maker's, of dense bfloat16 products
(`device_peaks.json`); a device that is not in the table has no MFU, and none is guessed.
"""

import json
import re
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

PEAKS = Path(__file__).with_name("device_peaks.json")


class Speed:
    """What was trained on in how much time, of all processes; time for evaluation and checkpoints is left out."""

    def __init__(self, flops_per_token: float | None = None, peak_flops: float | None = None):
        """Begin.

        Args:
            flops_per_token: of a forward and backward pass.
            peak_flops: FLOP/s of all devices together.
        """
        self.flops_per_token, self.peak_flops = flops_per_token, peak_flops
        self.seconds = self.since_s = 0.0
        self.tokens = self.supervised = self.since_tokens = self.since_supervised = 0
        self.resumed = (0, 0)  # tokens that earlier processes of the run saw
        self.earlier_s = 0.0  # what the run took, evaluation and checkpoints included, up to where it goes on
        self.began_s = time.perf_counter()
        self.last_s: float | None = None

    def begin(self) -> None:
        """Training begins, or goes on."""
        self.began_s = time.perf_counter()
        self.pause()

    def pause(self) -> None:
        """Leave out the time since the last step."""
        self.last_s = time.perf_counter()

    def step(self, total_tokens: int, supervised: int) -> None:
        """Take in a step that has ended: all tokens so far, and the supervised ones of the step."""
        now = time.perf_counter()
        took_s = 0.0 if self.last_s is None else now - self.last_s
        self.last_s = now
        self.since_tokens += total_tokens - self.tokens
        self.since_supervised += supervised
        self.tokens, self.supervised = total_tokens, self.supervised + supervised
        self.seconds += took_s
        self.since_s += took_s

    def flush(self) -> dict[str, float]:
        """Return the entries for the steps since the last call."""
        if not self.since_s:
            return {}
        entries = self._rates(self.since_tokens, self.since_supervised, self.since_s)
        self.since_s, self.since_tokens, self.since_supervised = 0.0, 0, 0
        return entries | {"peak_memory_mib": round(peak_memory_mib(), 1)}

    def whole(self) -> dict[str, Any]:
        """Return what `run.json` says of the whole run, and of its speed since it was last started."""
        rates = self._rates(self.tokens - self.resumed[0], self.supervised - self.resumed[1], self.seconds)
        return {
            "tokens_seen": self.tokens,
            "supervised_tokens_seen": self.supervised,
            "tokens_per_s": 0.0,
            "supervised_tokens_per_s": 0.0,
            "mfu": None,
            **rates,
            "peak_memory_mib": round(peak_memory_mib(), 1),
        }

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        runtime_s = self.earlier_s + time.perf_counter() - self.began_s
        return {"tokens": self.tokens, "supervised": self.supervised, "runtime_s": round(runtime_s, 3)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from another's `state`."""
        self.tokens, self.supervised = state["tokens"], state["supervised"]
        self.earlier_s = state.get("runtime_s", 0.0)  # not in checkpoints of earlier versions
        self.resumed = (self.tokens, self.supervised)

    def _rates(self, tokens: int, supervised: int, seconds: float) -> dict[str, float]:
        if not seconds:
            return {}
        rates = {"tokens_per_s": round(tokens / seconds, 1), "supervised_tokens_per_s": round(supervised / seconds, 1)}
        if self.flops_per_token and self.peak_flops:
            rates["mfu"] = round(tokens / seconds * self.flops_per_token / self.peak_flops, 4)
        return rates


class SpeedCallback(TrainerCallback):
    """Tell a trainer's `speed` when steps end, and what is no training."""

    def __init__(self, trainer: Any):
        """Watch `trainer`, which has `speed`, and counts of tokens and of its last step."""
        self.trainer = trainer

    def on_train_begin(self, *arguments: Any, **keywords: Any) -> None:
        """Start the clocks."""
        self.trainer.speed.begin()

    def on_step_end(self, *arguments: Any, **keywords: Any) -> None:
        """Count."""
        self.trainer.speed.step(*self.trainer.tokens_so_far())

    def on_evaluate(self, *arguments: Any, **keywords: Any) -> None:
        """Leave evaluation out."""
        self.trainer.speed.pause()

    def on_save(self, *arguments: Any, **keywords: Any) -> None:
        """Leave checkpoints out."""
        self.trainer.speed.pause()


def flops_per_token(model: Any, lengths: np.ndarray) -> float | None:
    """Return the FLOPs of a forward and backward pass for a token of documents of these lengths, on average.

    None for a mixture of experts, whose tokens do not meet all weights.
    """
    config = model.config.get_text_config()
    if any(getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts")):
        return None
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    looked_up = base.get_input_embeddings().weight
    is_tied = base.get_output_embeddings() is not None and base.get_output_embeddings().weight is looked_up
    flops = 0.0
    for parameter in model.parameters():
        if parameter is looked_up and not is_tied:
            continue
        flops += (6 if parameter.requires_grad else 4) * parameter.numel()
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    lengths = lengths.astype(np.float64)
    mean = float((lengths**2).sum() / lengths.sum())  # of the document that a token is in
    return flops + 6.0 * config.num_attention_heads * head * config.num_hidden_layers * mean


def device_peak(name: str) -> float | None:
    """Return a device's dense bfloat16 peak, FLOP/s, or None where the table does not have it."""
    for device in json.loads(PEAKS.read_text(encoding="utf-8"))["devices"]:
        if re.fullmatch(device["name"], name):
            return float(device["flops"])
    return None


def peak_memory_mib() -> float:
    """Return the most memory that this process has held."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def speed_of(trainer: Any, lengths: np.ndarray) -> Speed:
    """Return the meter of a trainer over documents of these lengths."""
    peak = None
    if trainer.args.device.type == "cuda" and (trainer.args.bf16 or trainer.args.fp16):
        peak = device_peak(torch.cuda.get_device_name(trainer.args.device))
    ranks = trainer.accelerator.num_processes
    return Speed(flops_per_token(trainer.model, lengths), peak and peak * ranks)


def speed_text(entries: dict[str, Any]) -> str:
    """Return the entries in words."""
    parts = [f"{entries.get('tokens_per_s') or 0:,.0f} tokens/s"]
    parts.append(f"{entries.get('supervised_tokens_per_s') or 0:,.0f} supervised")
    if entries.get("mfu") is not None:
        parts.append(f"MFU {entries['mfu']:.1%}")
    return ", ".join([*parts, f"peak memory {entries.get('peak_memory_mib', 0.0):,.0f} MiB"])
