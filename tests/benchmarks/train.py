"""Training speed and memory of `sft`, `go` and `rho1` beside TRL's own `SFTTrainer`, on real shards.

    python -m tests.benchmarks.train --shards <dir> --grouper tfidf                     two cores, a small model
    python -m tests.benchmarks.train --shards <dir> --accumulate 4                      the guess of the worst group
    python -m tests.benchmarks.train --shards <dir> --device cuda --size llama-3.2-3b   one GPU, random weights

All train on the same rows in the same order (with --packing on the same packed rows), in short runs that alternate; the
first steps of a run are left out. Of each step the fastest of all rounds counts, since other work on the machine only
ever adds time; printed are means over the steps, redone ones included, and their ratios to TRL's trainer and to `sft`,
by the clock and by this process's processor time. `own ms` is what the objective and the curves themselves take of a
step, measured around their own code. Where the shards hold a column of reference losses, `rho1` takes part, and beside
it `inside`: the same with a reference model of the same size in the loop, as Rho-1 is usually written.

On a CPU every run is a process of its own, since where a process happens to get its memory can make all of its steps
a tenth slower, whichever trainer it runs; and malloc keeps what is freed (`train.loop.memory`), set from outside so
that TRL's trainer has it too.

Peak memory: on a GPU, what torch allocated at most during a run. On a CPU (Linux), the most resident memory while
training, the median of the runs. `above` is what training added to the loaded model and data.

Model FLOPs utilisation counts 6 FLOPs a token for each weight that multiplies (the LM head included, the embedding
look-up not), and 6 × width × length² for each document and layer (causal attention), and nothing that activation
checkpointing computes twice, over the GPU's dense bfloat16 peak.
"""

import argparse
import functools
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

WARM_UP = 2
TRL, INSIDE = "trl", "inside"
PEAK_FLOPS = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bfloat16, from data sheets
KEEP_FREED = {"MALLOC_MMAP_THRESHOLD_": str(2**33), "MALLOC_TRIM_THRESHOLD_": str(2**34)}  # glibc; see above
# hidden size, intermediate size, layers, heads, key-value heads; None: the command's own tiny model
SIZES = {
    "tiny": None,
    "small": (256, 1024, 6, 8, 4),
    "llama-3.2-1b": (2048, 8192, 16, 32, 8),
    "llama-3.2-3b": (3072, 8192, 28, 24, 8),
}


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", required=True)
    parser.add_argument("--grouper", help="the column of go; not needed where there is one")
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--model", help="a checkpoint in the place of --size: where a run stands after its first steps")
    parser.add_argument("--kinds", nargs="+", choices=(TRL, "sft", "go", "rho1", INSIDE), help="default: all there are")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="measured steps of a round")
    parser.add_argument("--batch", type=int, default=4, help="documents or packed rows of a micro-batch")
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--max_length", type=int, default=512)
    parser.add_argument("--packing", action="store_true")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations")
    parser.add_argument("--attention", default="sdpa", help="sdpa, eager, flash_attention_2 or a kernel's name")
    parser.add_argument(
        "--weights", choices=("float32", "bfloat16"), default="float32", help="bfloat16 computes, on CUDA"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", help=argparse.SUPPRESS)  # one kind, in a process of its own
    return parser.parse_args()


class Bench:
    """The data, and what makes a trainer of it."""

    def __init__(self, options: argparse.Namespace):
        """Load the shards and cut off as many rows as the runs need."""
        import torch
        from datasets import disable_progress_bars

        from tests.benchmarks.trainers import labelled
        from train.data.loading import open_shards

        torch.set_num_threads(options.threads)
        disable_progress_bars()
        self.options = options
        self.work = Path(tempfile.mkdtemp(prefix="benchmark-train-"))
        self.opened = open_shards([options.shards])
        references = [name for name, kind in self.opened[0].columns.items() if kind == "reference_loss"]
        self.kinds = (TRL, "sft", "go", *(["rho1", INSIDE] if references else []))
        self.columns = {"sft": options.grouper, "go": options.grouper, "rho1": references[0] if references else None}
        if options.only or options.kinds:
            self.kinds = (options.only,) if options.only else tuple(options.kinds)
        self.data = {kind: self._rows({TRL: "sft", INSIDE: "rho1"}.get(kind, kind)) for kind in self.kinds}
        if TRL in self.data:
            self.data[TRL] = labelled(self.data[TRL])

    def _rows(self, objective: str) -> Any:
        from trl import pack_dataset

        from tests.train.runs import plan_for
        from train.data.loading import load_data

        options = self.options
        plan = plan_for(self.opened, self.columns[objective], objective)
        rows = load_data(self.opened, plan, options.max_length, 0.0, 0, self.work).train
        needed = (WARM_UP + options.steps) * options.batch * options.accumulate
        if options.packing:
            rows = pack_dataset(rows.select(range(min(len(rows), 60 * needed))), options.max_length, "bfd")
        if len(rows) < needed:
            raise SystemExit(f"the shards give {len(rows)} rows, {needed} are needed: lower --steps or --batch")
        return rows.shuffle(seed=0).select(range(needed)).flatten_indices()

    def model(self) -> Any:
        """Return the model to train, random weights unless --model was given."""
        import torch
        from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

        from train.loop.models import tiny_model

        options, shape = self.options, SIZES[self.options.size]
        torch.manual_seed(0)
        if options.model:
            return AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.weights))
        if shape is None:
            return tiny_model(self.tokenizer, options.max_length)
        hidden, intermediate, layers, heads, kv_heads = shape
        config = LlamaConfig(
            vocab_size=len(self.tokenizer),
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=128 if hidden >= 3072 else hidden // heads,
            max_position_embeddings=options.max_length,
            tie_word_embeddings=True,
            rope_theta=500000.0,
        )
        config._attn_implementation = options.attention
        with torch.device(options.device):
            return LlamaForCausalLM(config).to(getattr(torch, options.weights))

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The shards' tokenizer."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(str(self.opened[0].path / "tokenizer"))

    def trainer(self, kind: str) -> Any:
        """Return a fresh trainer of one kind."""
        from transformers import PrinterCallback, ProgressCallback
        from trl import SFTConfig, SFTTrainer

        from tests.benchmarks.trainers import InsideTrainer, TimedTrainer
        from tests.train.runs import make_objective, plan_of
        from train.settings.config import GOConfig

        options = self.options
        settings = {
            "output_dir": str(self.work),
            "max_steps": WARM_UP + options.steps,
            "per_device_train_batch_size": options.batch,
            "gradient_accumulation_steps": options.accumulate,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "bf16": options.device == "cuda",
            "gradient_checkpointing": options.checkpointing,
            "use_cpu": options.device == "cpu",
            "dataloader_pin_memory": options.device == "cuda",
            "max_length": options.max_length,
            "packing": options.packing,
        }
        if kind == TRL:
            args = SFTConfig(**settings, dataset_kwargs={"skip_prepare_dataset": True})
            make = SFTTrainer
        else:
            objective = "rho1" if kind == INSIDE else kind
            args, make = GOConfig(**settings, objective=objective), InsideTrainer if kind == INSIDE else TimedTrainer
            make = functools.partial(make, objective=make_objective(objective), plan=plan_of(self.data[kind], args))
        trainer = make(self.model(), args, train_dataset=self.data[kind], processing_class=self.tokenizer)
        if kind == INSIDE:
            trainer.use_reference(self.model())
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        return trainer

    def run(self, kind: str) -> dict[str, Any]:
        """Train once; return times of the measured steps, redone steps and peak memory."""
        import gc

        import torch

        from tests.benchmarks.trainers import Clock

        trainer, clock = self.trainer(kind), Clock(self.options.device)
        trainer.add_callback(clock)
        if self.options.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before_mib = torch.cuda.memory_allocated() / 2**20
        else:
            before_mib = _forget_peak_mib()
        trainer.train()
        on_gpu = self.options.device == "cuda"
        peak_mib = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else _resident_mib("VmHWM")
        found = {
            "wall_s": clock.wall_s[WARM_UP:],
            "processor_s": clock.processor_s[WARM_UP:],
            "own_s": getattr(trainer, "own_s", [])[WARM_UP * self.options.accumulate :],
            "redone": trainer.redone.num_redone_steps if kind != TRL else 0,
            "peak_mib": peak_mib,
            "above_mib": peak_mib - before_mib,
        }
        del trainer
        gc.collect()
        if self.options.device == "cuda":
            torch.cuda.empty_cache()
        return found

    def flops(self) -> tuple[float, int]:
        """Return the model FLOPs and the tokens of one epoch over the rows, forward and backward."""
        import torch

        with torch.device("cpu" if self.options.model else "meta"):
            is_made_here = self.options.model or SIZES[self.options.size] is None
            model = self.model() if is_made_here else self._meta()
        config = model.config
        weights = sum(p.numel() for p in model.parameters())  # tied: the one matrix multiplies as the head
        width = config.num_attention_heads * config.head_dim
        rows = self.data[self.kinds[0]]
        lengths = [n for row in rows for n in row.get("seq_lengths", [len(row["input_ids"])])]
        attention = 6 * width * config.num_hidden_layers * sum(int(n) ** 2 for n in lengths)
        tokens = sum(int(n) for n in lengths)
        return 6.0 * weights * tokens + attention, tokens

    def _meta(self) -> Any:
        device, self.options.device = self.options.device, "meta"
        try:
            return self.model()
        finally:
            self.options.device = device


def _resident_mib(name: str) -> float:
    """Return this process's resident memory: VmRSS now, VmHWM at most."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{name}:")) / 1024


def _forget_peak_mib() -> float:
    """Let VmHWM start again from now, which loading would else have set (`ru_maxrss` cannot), and return VmRSS."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return _resident_mib("VmRSS")


def run_apart(kind: str) -> dict[str, Any]:
    """Return what `Bench.run` returns, from a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.train", *sys.argv[1:], "--only", kind]
    environment = {**os.environ, **KEEP_FREED}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"the run of {kind} failed; see: {' '.join(command)}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure and print."""
    options = parse()
    warnings.filterwarnings("ignore")
    bench = Bench(options)
    if options.only:
        print(json.dumps(bench.run(options.only)))
        return
    import torch

    runs: dict[str, list[dict[str, Any]]] = {kind: [] for kind in bench.kinds}
    for number in range(options.rounds):
        for kind in bench.kinds if number % 2 == 0 else bench.kinds[::-1]:
            runs[kind].append(run_apart(kind) if options.device == "cpu" else bench.run(kind))
            took_s = sum(runs[kind][-1]["wall_s"])
            print(f"round {number + 1} of {options.rounds}: {kind} {took_s:.1f} s", file=sys.stderr, flush=True)
    memory = {
        kind: tuple(statistics.median(run[name] for run in many) for name in ("peak_mib", "above_mib"))
        for kind, many in runs.items()
    }
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {options.threads} threads"
    if options.device == "cuda":
        machine = f"{torch.cuda.get_device_name()}, bfloat16, {options.attention} attention, {options.weights} weights"
    flops, tokens = bench.flops()
    steps = WARM_UP + options.steps
    rows = "packed rows" if options.packing else "documents"
    print(f"machine  {machine}, torch {torch.__version__}")
    print(f"shards   {options.shards}, column {options.grouper or 'the only one'}, {options.model or options.size}")
    print(f"step     {options.batch} × {options.accumulate} {rows} of at most {options.max_length} tokens", end="")
    print(f", {tokens / steps:,.0f} tokens on average")
    print(f"runs     {options.rounds} alternating rounds of {options.steps} steps after {WARM_UP} of warm-up")
    print_table(runs, memory, flops / tokens, tokens / steps, options.device == "cuda")


def print_table(
    runs: dict[str, list[dict[str, Any]]],
    memory: dict[str, tuple[float, float]],
    flops_per_token: float,
    tokens_per_step: float,
    is_gpu: bool,
) -> None:
    """Print a line for each kind."""
    import torch

    def fastest(kind: str, clock: str) -> list[float]:
        return [min(times) for times in zip(*(run[clock] for run in runs[kind]), strict=True)]

    def against(kind: str, clock: str, other: str) -> float:
        return sum(fastest(kind, clock)) / sum(fastest(other, clock)) if other in runs else math.nan

    peak = next((p for name, p in PEAK_FLOPS.items() if is_gpu and name in torch.cuda.get_device_name()), None)
    header = f"{'':7}{'s/step':>9}{'tokens/s':>10}{'to trl':>8}{'to sft':>8}{'cpu/trl':>9}{'cpu/sft':>9}{'own ms':>8}"
    print(header + f"{'redone':>8}{'peak MiB':>10}{'to trl':>8}{'above':>8}" + (f"{'MFU':>7}" if is_gpu else ""))
    for kind, many in runs.items():
        step_s = statistics.mean(fastest(kind, "wall_s"))
        own_s = [seconds for run in many for seconds in run["own_s"]]
        per_step = len(own_s) / max(sum(len(run["wall_s"]) for run in many), 1)
        line = f"{kind:7}{step_s:9.4f}{tokens_per_step / step_s:10,.0f}"
        for clock, width in (("wall_s", 8), ("processor_s", 9)):
            line += "".join(f"{against(kind, clock, other):{width}.3f}" for other in (TRL, "sft"))
        line += f"{1000 * statistics.median(own_s) * per_step:8.2f}" if own_s else f"{'':8}"
        line += f"{statistics.mean(run['redone'] for run in many):8.1f}"
        peak_mib, above_mib = memory[kind]
        to_trl = peak_mib / memory[TRL][0] if TRL in memory else math.nan
        line += f"{peak_mib:10,.0f}{to_trl:8.3f}{above_mib:8,.0f}"
        if is_gpu:
            line += f"{tokens_per_step / step_s * flops_per_token / peak:7.1%}" if peak else f"{'?':>7}"
        print(line)


if __name__ == "__main__":
    main()
