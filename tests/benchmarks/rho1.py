"""Peak memory and speed of rho1 at a real vocabulary, beside the plain `model(...).logits` path.

    python -m tests.benchmarks.rho1                     # one document of 4,096 tokens, vocabulary 128,256, then speed
    python -m tests.benchmarks.rho1 --device cuda       # the same on a GPU, in bfloat16
    python -m tests.benchmarks.rho1 --model runs/ref    # a checkpoint of your own

Each measurement is a process of its own, since a process's peak memory never falls. What it prints, per path: the peak
above what the loaded model takes (loading included), seconds, and the mean loss, which must agree.
The model has random weights and a small width, so the head dominates, as nothing else grows with the vocabulary.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=128_256)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 4096], help="lengths of the one document")
    parser.add_argument("--corpus", type=int, default=20_000, help="tokens of the corpus for the speed measurement")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default=None, help="default: float32 on the CPU, bfloat16 on a GPU")
    parser.add_argument("--model", default=None, help="a checkpoint; default: random weights, width 64, 2 layers")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # one measurement, in a process of its own
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(MEASUREMENTS[options.measure](options)))
        return
    with tempfile.TemporaryDirectory() as directory:
        model = options.model or make_checkpoint(Path(directory), options.vocabulary)
        full = f"{4 * options.vocabulary * max(options.tokens) / GIB:.2f} GiB"
        print(f"vocabulary {options.vocabulary:,}; full float32 logits of {max(options.tokens):,} tokens: {full}")
        print(f"{'path':8} {'tokens':>7} {'peak over model':>16} {'seconds':>8} {'mean loss':>10}")
        for tokens in options.tokens:
            for path in ("rho1", "plain"):
                result = measure(path, options, model, tokens)
                peak_gib, seconds, mean = result["peak"] / GIB, result["seconds"], result["mean"]
                print(f"{path:8} {tokens:7,} {peak_gib:12.3f} GiB {seconds:8.2f} {mean:10.5f}")
        result = measure("corpus", options, model, max(options.tokens))
        print(
            f"corpus of {result['documents']} documents, {result['tokens']:,} tokens: "
            f"{result['tokens'] / result['seconds']:,.0f} tokens/s, {result['padding']:.1%} of the batches is padding"
        )


def measure(name: str, options: argparse.Namespace, model: str, tokens: int) -> dict:
    """Run one measurement in a new process."""
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.rho1",
        "--measure",
        name,
        "--model",
        model,
        "--tokens",
        str(tokens),
    ]
    command += ["--device", options.device, "--corpus", str(options.corpus)]
    command += ["--dtype", options.dtype] if options.dtype else []
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{name} at {tokens} tokens failed (out of memory?):\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def make_checkpoint(directory: Path, vocabulary: int) -> str:
    """Save a small Llama with random weights; it needs no tokenizer, since no text is read."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=131_072,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    return str(directory)


def load(options: argparse.Namespace):
    """Return the model under measurement."""
    from annotate.groupers.rho1.reference_loss import ReferenceModel
    from annotate.models.checkpoints import resolve_dtype

    dtype = resolve_dtype(options.dtype, options.device)
    return ReferenceModel(options.model, "--model", None, dtype, options.device)


def held(device: str) -> int:
    """Return the bytes that this process (on a GPU, its allocations there) holds now."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.memory_allocated()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak(device: str) -> int:
    """Return the bytes that it held at most, since it began (on a GPU, since the reset)."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def rho1_losses(model, ids: np.ndarray) -> np.ndarray:
    """The path of the product."""
    return model.losses(ids, np.array([0, len(ids)]), np.array([0]), len(ids))


def plain_losses(model, ids: np.ndarray) -> np.ndarray:
    """What one would write first: all logits, then cross-entropy in float32."""
    import torch
    import torch.nn.functional as F

    with torch.inference_mode():
        inputs = torch.from_numpy(ids.astype(np.int64)).to(model.model.device)
        logits = model.model(input_ids=inputs[None], use_cache=False).logits
        losses = F.cross_entropy(logits[0, :-1].float(), inputs[1:], reduction="none")
        return np.concatenate([[0.0], losses.cpu().numpy()])


def measure_document(options: argparse.Namespace, losses) -> dict:
    """Measure one document of the wanted length, after a short one for warming up."""
    model = load(options)
    ids = np.random.default_rng(0).integers(0, model.vocab_size, options.tokens[0], dtype=np.int32)
    losses(model, ids[:16])
    before = held(options.device)
    if options.device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    values = losses(model, ids)
    seconds = time.perf_counter() - start
    return {"peak": peak(options.device) - before, "seconds": seconds, "mean": float(values.mean())}


def measure_corpus(options: argparse.Namespace) -> dict:
    """Measure documents with lengths like those of instruction data (log-normal, median 150 tokens)."""
    from annotate.groupers.rho1.reference_loss import BATCH_TOKENS

    model = load(options)
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(5.0, 0.8, options.corpus // 150).astype(int), 8, 4096)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = rng.integers(0, model.vocab_size, offsets[-1], dtype=np.int32)
    budget = BATCH_TOKENS[options.device.split(":")[0]]
    model.losses(ids, offsets, np.arange(2), budget)
    start = time.perf_counter()
    model.losses(ids, offsets, np.arange(len(lengths)), budget)
    seconds = time.perf_counter() - start
    padded = sum(batch.sources.size for batch in model.packing.batches(offsets[:-1], lengths - 1, budget))
    tokens = int(offsets[-1])
    return {
        "documents": len(lengths),
        "tokens": tokens,
        "seconds": seconds,
        "padding": 1 - (tokens - len(lengths)) / padded,
    }


MEASUREMENTS = {
    "rho1": lambda options: measure_document(options, rho1_losses),
    "plain": lambda options: measure_document(options, plain_losses),
    "corpus": measure_corpus,
}

if __name__ == "__main__":
    main()
