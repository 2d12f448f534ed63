"""Speed and memory of training: padded and padding-free, each objective, beside TRL's own trainer."""

import math
import tempfile
from typing import Any

from tests.gpu import material

WARM_UP = 2
LIMA_TOKENS = 15 * 1029 * 480  # 15 epochs of LIMA, about 480 tokens a document; what the extrapolation is of


def run(options: Any) -> dict[str, Any]:
    """Return the figures."""
    import torch

    on_gpu = options.device == "cuda"
    size = options.size or ("llama-3.2-3b" if on_gpu else "tiny")
    shape = {"vocabulary": 128256, "longest": 2048, "batch": 8, "steps": 6} if on_gpu else SMALL
    figures, rates, peaks, checks = [], {}, {}, []
    for kind in ("trl", "sft", "go", "rho1"):
        for flat in (False, True):
            name = f"{kind}, {'padding-free' if flat else 'padded'}"
            try:
                found = measure(options, size, shape, kind, flat)
            except torch.OutOfMemoryError as error:  # the others are still measured
                checks.append((f"{name} fits", False, str(error)[:200]))
                continue
            rates[name], peaks[name] = found["tokens_per_s"], found["peak_mib"]
            figures.append((name, f"{found['tokens_per_s']:,.0f} tokens/s", f"{found['peak_mib']:,.0f} MiB"))
            if found.get("mfu"):
                figures.append((f"{name}, MFU", f"{found['mfu']:.1%}", "aim 45 %"))
    for flat in ("padded", "padding-free"):
        if not {f"{kind}, {flat}" for kind in ("trl", "sft", "go")} <= set(rates):
            continue
        ratio = rates[f"sft, {flat}"] / rates[f"go, {flat}"]
        figures.append((f"time of go to sft, {flat}", f"{ratio:.3f}", "aim 1.03"))
        memory = peaks[f"go, {flat}"] / peaks[f"trl, {flat}"]
        figures.append((f"peak memory of go to TRL's trainer, {flat}", f"{memory:.3f}", "aim 1.02"))
    if on_gpu and "go, padding-free" in rates:
        minutes = LIMA_TOKENS / rates["go, padding-free"] / 60
        figures.append(("LIMA, 15 epochs, extrapolated from measured steps", f"{minutes:.1f} minutes", "aim 15"))
    skipped = (
        [] if on_gpu else ["training: figures of a CPU at this size say nothing about a GPU, and MFU needs a peak"]
    )
    return {"checks": checks, "figures": [("model", size, ""), *figures], "skipped": skipped}


SMALL = {"vocabulary": 2000, "longest": 96, "batch": 4, "steps": 3}


def measure(options: Any, size: str, shape: dict[str, int], kind: str, flat: bool) -> dict[str, Any]:
    """Train once; return tokens a second after the warm-up, and peak memory."""
    import gc

    import torch

    from tests.benchmarks.trainers import Clock, labelled
    from train.reports.speed import device_peak, flops_per_token, peak_memory_mib

    steps = WARM_UP + shape["steps"]
    objective = "sft" if kind == "trl" else kind
    data = material.rows(steps * shape["batch"], shape["longest"], shape["vocabulary"], objective)
    net = material.model(size, shape["vocabulary"], options.device)
    settings = {
        "max_steps": steps,
        "per_device_train_batch_size": shape["batch"],
        "padding_free": flat,
        "gradient_checkpointing": options.device == "cuda",
    }
    if kind == "trl":
        made = trl_trainer(options, net, labelled(data), settings)
        if flat and options.device == "cuda":  # both with the same kernel
            from train.loop.attention import use_lengths

            use_lengths(made.model, False, made.accelerator.autocast)
    else:
        made = material.trainer(net, data, options.device, lengths=flat, objective=objective, **settings)
    clock = Clock(options.device)
    made.add_callback(clock)
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    made.train()
    lengths = [len(row["input_ids"]) for row in data.select(range(WARM_UP * shape["batch"], len(data)))]
    rate = sum(lengths) / sum(clock.wall_s[WARM_UP:])
    found = {"tokens_per_s": rate, "peak_mib": peak_memory_mib()}
    peak = device_peak(torch.cuda.get_device_name()) if options.device == "cuda" else None
    if peak:
        import numpy as np

        found["mfu"] = rate * (flops_per_token(net, np.array(lengths)) or math.nan) / peak
    del made, net
    gc.collect()
    if options.device == "cuda":
        torch.cuda.empty_cache()
    return found


def trl_trainer(options: Any, net: Any, data: Any, settings: dict[str, Any]) -> Any:
    """Return TRL's own trainer over the same rows."""
    from transformers import PrinterCallback, ProgressCallback
    from trl import SFTConfig, SFTTrainer

    from tests.train.conftest import build_tokenizer

    args = SFTConfig(
        output_dir=tempfile.mkdtemp(prefix="sft-go-gpu-"),
        use_cpu=options.device == "cpu",
        bf16=options.device == "cuda",
        save_strategy="no",
        report_to="none",
        max_length=None,
        train_sampling_strategy="sequential",
        dataset_kwargs={"skip_prepare_dataset": True},
        **settings,
    )
    made = SFTTrainer(net, args, train_dataset=data, processing_class=build_tokenizer())
    made.remove_callback(PrinterCallback)
    made.remove_callback(ProgressCallback)
    return made
