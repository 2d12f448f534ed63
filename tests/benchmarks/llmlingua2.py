"""How fast llmlingua2 is beside the `llmlingua` package: the same checkpoint and documents, in one run.

    python -m tests.benchmarks.llmlingua2 --data path/to/alpaca.json                # two CPU cores, float32: minutes
    python -m tests.benchmarks.llmlingua2 --data path/to/alpaca.json --device cuda  # XLM-R large, bfloat16

Checkpoints have random weights in the real architectures and a tokenizer trained on the data. Measured, as medians over
runs that alternate, each after a short one of the same side, which lets the allocator settle (the ratio in CPU time
means something on a busy machine and with one thread):

- the package's fastest whole path from texts to words with probabilities: its chunks, then `__get_context_prob`. (Its
  `compress_prompt` does more: it counts tokens with another tokenizer and writes a shorter text.)
- the project's grouper: the same, and the scores of the target tokens on top. Tokenizing for the target is not part.

Tokens are the compressor's, those of the documents, without padding and special tokens. The share of the peak is the
floating-point work of these tokens alone, over the time and over the fastest square matrix product in the same dtype.
On a GPU, the package runs as it comes (float32, the dtype of the files), on fewer documents.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from annotate.groupers.llmlingua2.checkpoint import Checkpoint
from annotate.groupers.llmlingua2.grouper import Llmlingua2
from annotate.groupers.llmlingua2.model import BATCH_TOKENS
from annotate.models.onednn import use_onednn
from annotate.records.conversations import to_conversation
from annotate.records.sources import SAMPLE_TOKENIZER
from annotate.tokens.batch import TokenBatch
from annotate.tokens.target import TargetTokenizer
from annotate.tokens.templates import make_template
from tests.annotate.groupers.llmlingua2.compressor_checkpoints import (
    PACKAGE_NAMES,
    TRAIN,
    load_package,
    package_chunks,
    save_compressor,
)

# name: family, layers, width, documents on a CPU, documents for the project on a GPU
SIZES = {
    "tiny": ("bert", 2, 128, 300, 20_000),
    "bert-base": ("bert", 12, 768, 48, 4_000),
    "xlm-roberta-large": ("xlm-roberta", 24, 1024, 8, 4_000),
}
PACKAGE_DOCUMENTS_ON_GPU = 200
WARM_UP_DOCUMENTS = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a JSON file of Alpaca records")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--size", nargs="+", choices=list(SIZES), help="default: tiny and bert-base; on a GPU the large"
    )
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], help="default: float32; bfloat16 on a GPU"
    )
    parser.add_argument("--template", default="plain", choices=["plain", "alpaca"])
    parser.add_argument("--documents", type=int, help="documents for both sides; default: by size and device")
    parser.add_argument("--batch-tokens", type=int, help="default: the grouper's")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="cores that torch uses on a CPU")
    parser.add_argument("--tokenizer", default=str(SAMPLE_TOKENIZER), help="the target; default: the shipped one")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.dtype = options.dtype or ("float32" if options.device == "cpu" else "bfloat16")
    where = (
        torch.cuda.get_device_name()
        if options.device == "cuda"
        else f"{platform.machine()} CPU, {options.threads} cores"
    )
    peak = matrix_peak(options.device, options.dtype)
    print(f"{where}; {options.dtype} matrix products reach {peak / 1e12:.3g} TFLOP/s; template {options.template}")
    target = TargetTokenizer(options.tokenizer)
    records = json.loads(options.data.read_text(encoding="utf-8"))
    template = make_template(options.template, target.tokenizer)
    segments = [template(to_conversation(record, "alpaca")) for record in records if record["output"]]
    for size in options.size or (["tiny", "bert-base"] if options.device == "cpu" else ["xlm-roberta-large"]):
        compare(size, segments, target, options, peak)


def compare(size: str, segments: list, target: TargetTokenizer, options: argparse.Namespace, peak: float) -> None:
    """Measure one size of checkpoint and print a line for each side."""
    family, layers, width, on_cpu, on_gpu = SIZES[size]
    ours = options.documents or (on_cpu if options.device == "cpu" else on_gpu)
    theirs = min(ours, PACKAGE_DOCUMENTS_ON_GPU) if options.device == "cuda" else ours
    step = max(1, len(segments) // ours)
    chosen = segments[::step][:ours]  # from everywhere in the file
    batch = target.tokenize(chosen, [str(i) for i in range(ours)], range(ours), 1 << 20, with_spans=True).batch
    texts = batch.texts[:: max(1, ours // theirs)][:theirs]
    with tempfile.TemporaryDirectory() as place:
        tokenizer = TRAIN[family](["".join(s.text for s in document) for document in segments[:8000]], 30_000)
        directory = save_compressor(
            Path(place) / PACKAGE_NAMES[family],
            family,
            tokenizer,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            intermediate_size=4 * width,
            initializer_range=0.02,
        )
        package = load_package(directory, options.device)
        grouper = Llmlingua2(
            Checkpoint.find(str(directory)), options.dtype, options.device, options.batch_tokens, package_parity=False
        )
        chunks = grouper.compressor().chunks(batch.texts)
        own_tokens = len(grouper.compressor().chunks(texts).ids)
        package_times, grouper_times = [], []
        warm_up(grouper, batch)
        few = batch.select(np.arange(min(len(batch), WARM_UP_DOCUMENTS)))
        for _ in range(options.runs):
            package_words(package, texts[: max(2, WARM_UP_DOCUMENTS // 8)])
            package_times.append(seconds(lambda: package_words(package, texts)))
            grouper.score(few)
            grouper_times.append(seconds(lambda: grouper.score(batch)))
    package_s, package_cpu_s = np.median(package_times, axis=0)
    grouper_s, grouper_cpu_s = np.median(grouper_times, axis=0)
    package_rate, grouper_rate = own_tokens / package_s, len(chunks.ids) / grouper_s
    cpu_ratio = (package_cpu_s / own_tokens) / (grouper_cpu_s / len(chunks.ids))
    share = useful_work(np.diff(chunks.offsets), layers, width) / grouper_s / peak
    budget = options.batch_tokens or BATCH_TOKENS[options.device]
    print(
        f"{size} ({layers} layers, {width} wide), {len(batch)} documents of {len(chunks.ids) / len(batch):.0f} tokens, "
        f"batches of {budget}, median of {options.runs}"
    )
    print(f"  llmlingua  {package_rate:12,.0f} tokens/s  {spread(package_times)} for {len(texts)} documents")
    print(f"  sft-go     {grouper_rate:12,.0f} tokens/s  {spread(grouper_times)} for {len(batch)} documents")
    ratio = f"{grouper_rate / package_rate:.1f} x (in CPU time {cpu_ratio:.1f} x)"
    print(f"  ratio {ratio}; sft-go reaches {share:.0%} of the matrix peak", flush=True)


def package_words(package, texts: list[str]) -> None:
    """The package, from texts to words."""
    package._PromptCompressor__get_context_prob(package_chunks(package, texts))


def warm_up(grouper: Llmlingua2, batch: TokenBatch) -> None:
    """Run a GPU's kernels once for every shape."""
    if torch.cuda.is_available():
        grouper.score(batch)
        torch.cuda.synchronize()


def seconds(function) -> tuple[float, float]:
    """Return the wall time of a call, and its CPU time over all threads; both sides end with results on the CPU."""
    started, busy = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - started, time.process_time() - busy


def spread(times: list[tuple[float, float]]) -> str:
    walls = [wall for wall, _ in times]
    return f"{statistics.median(walls):.2f} s ({min(walls):.2f}–{max(walls):.2f})"


def matrix_peak(device: str, dtype: str) -> float:
    """Return the fastest floating-point operations a second of a square matrix product, by either library on a CPU."""
    size, rounds = (2048, 5) if device == "cpu" else (8192, 30)
    left = torch.randn(size, size, device=device, dtype=getattr(torch, dtype))
    layers = [torch.nn.Linear(size, size, bias=False, device=device, dtype=left.dtype) for _ in range(2)]
    use_onednn(layers[1])  # which changes layers on a CPU, in float32

    def multiply(layer: torch.nn.Module) -> None:
        with torch.inference_mode():
            layer(left)
        if device == "cuda":
            torch.cuda.synchronize()

    for layer in layers:
        multiply(layer)
    return 2 * size**3 / min(seconds(lambda layer=layer: multiply(layer))[0] for layer in layers * rounds)


def useful_work(lengths: np.ndarray, layers: int, width: int) -> float:
    """Return the floating-point operations of the chunks' own tokens.

    Per token and layer: 2 · 12 · width² for the six matrices (attention 4 · width², feed-forward 8 · width²), and
    4 · length · width for attention's scores and their use.
    """
    return float((layers * (24 * width**2 * lengths + 4 * width * lengths.astype(np.float64) ** 2)).sum())


if __name__ == "__main__":
    main()
