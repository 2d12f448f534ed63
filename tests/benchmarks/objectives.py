"""Step time of `go` beside `sft` and TRL's own `SFTTrainer`, on real shards.

    python tests/benchmarks/objectives.py --shards <dir> --grouper tfidf

The three run in one process over the same documents in the same order, in short alternating runs; the first steps of
each run are left out. Of each step, the fastest of all rounds counts, since other work on the machine only ever adds
time; printed are the medians over the steps and the medians of the step-by-step ratios. Two clocks: wall time, and this
process's processor time. The last column is what the objective and the curves themselves take of a step, measured
around their own code: the number to trust on a machine that is busy with other things.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
import warnings
from pathlib import Path

WARM_UP = 2


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", required=True)
    parser.add_argument("--grouper", default=None)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=10, help="measured steps a round")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--max_length", type=int, default=512)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    options = parse()
    warnings.filterwarnings("ignore")
    import numpy as np
    import torch
    from datasets import Dataset, disable_progress_bars
    from transformers import PrinterCallback, ProgressCallback, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from train.config import GOConfig
    from train.data import load_data, open_shards, plan_groups
    from train.models import TINY, load_tokenizer, tiny_model
    from train.settings import ObjectiveSettings
    from train.trainer import GOTrainer

    own_s: dict[str, list[float]] = {}

    class TimedTrainer(GOTrainer):
        def _forward(self, *arguments):
            started = time.perf_counter()
            result = super()._forward(*arguments)
            self.forward_s = time.perf_counter() - started
            return result

        def _step_loss(self, *arguments):
            started = time.perf_counter()
            result = super()._step_loss(*arguments)
            took_s = time.perf_counter() - started - self.forward_s
            own_s.setdefault(self.args.objective, []).append(took_s * self.args.gradient_accumulation_steps)
            return result

    class Clock(TrainerCallback):
        def __init__(self):
            self.wall_s, self.processor_s = [], []

        def on_step_begin(self, *arguments, **kwargs):
            self.started = (time.perf_counter(), time.process_time())

        def on_step_end(self, *arguments, **kwargs):
            self.wall_s.append(time.perf_counter() - self.started[0])
            self.processor_s.append(time.process_time() - self.started[1])

    torch.set_num_threads(options.threads)
    disable_progress_bars()
    work = Path(tempfile.mkdtemp(prefix="objectives-"))
    opened = open_shards([options.shards])
    plan = plan_groups(opened, options.grouper, ObjectiveSettings())
    data = load_data(opened, plan, options.max_length, 0.0, 0, work)
    rows = data.train[: (WARM_UP + options.steps) * options.batch * options.accumulate]
    labels = [
        np.where(supervised, ids, -100).tolist()
        for ids, supervised in zip(rows["input_ids"], rows["supervised"], strict=True)
    ]
    plain = Dataset.from_dict({"input_ids": [ids.tolist() for ids in rows["input_ids"]], "labels": labels})
    common = {
        "output_dir": str(work),
        "max_steps": WARM_UP + options.steps,
        "per_device_train_batch_size": options.batch,
        "gradient_accumulation_steps": options.accumulate,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "max_length": options.max_length,
    }

    def build(kind: str):
        torch.manual_seed(0)
        args = (SFTConfig if kind == "trl" else GOConfig)(**common)
        tokenizer = load_tokenizer(TINY, opened[0], args, argparse.Namespace(model_revision="main"))
        model = tiny_model(tokenizer, options.max_length)
        if kind == "trl":
            return SFTTrainer(model, args, train_dataset=plain, processing_class=tokenizer)
        args.objective = kind
        return TimedTrainer(model, args, data.train.select(range(len(plain))), processing_class=tokenizer)

    kinds = ("trl", "sft", "go")
    wall, processor = ({kind: [] for kind in kinds} for _ in range(2))
    for number in range(options.rounds):
        order = kinds if number % 2 == 0 else kinds[::-1]
        for kind in order:
            trainer, clock = build(kind), Clock()
            trainer.remove_callback(PrinterCallback)
            trainer.remove_callback(ProgressCallback)
            trainer.add_callback(clock)
            trainer.train()
            wall[kind].append(clock.wall_s[WARM_UP:])
            processor[kind].append(clock.processor_s[WARM_UP:])
    tokens = sum(len(ids) for ids in rows["input_ids"])
    print(
        f"machine  {platform.machine()}, {os.cpu_count()} cores, {options.threads} threads, torch {torch.__version__}"
    )
    print(f"shards   {options.shards}, column {plan.column}, {tokens:,} tokens in {len(plain)} documents")
    print(f"step     {options.batch} × {options.accumulate} documents of at most {options.max_length} tokens")
    print(f"runs     {options.rounds} alternating rounds of {options.steps} steps after {WARM_UP} of warm-up")
    clocks = "".join(f" {name:>12} {'to sft':>7} {'to trl':>7}  " for name in ("wall s/step", "cpu s/step"))
    print(f"{'':8}{clocks} {'own ms':>7}")
    for kind in kinds:
        line = f"{kind:8}"
        for times in (wall, processor):
            fastest = {name: [min(same_step) for same_step in zip(*runs, strict=True)] for name, runs in times.items()}
            line += f" {statistics.median(fastest[kind]):12.4f}"
            for other in ("sft", "trl"):
                pairs = zip(fastest[kind], fastest[other], strict=True)
                line += f" {statistics.median(a / b for a, b in pairs):7.3f}"
            line += "  "
        print(line + (f" {1000 * statistics.median(own_s[kind]):7.2f}" if kind in own_s else ""))


if __name__ == "__main__":
    main()
