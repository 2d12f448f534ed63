"""The preflight's memory estimate beside what a run takes on this CPU.

    python -m tests.benchmarks.memory                     three shapes, each plain, recomputed, with LoRA, and packed
    python -m tests.benchmarks.memory --only wide-lora    one of them, in this process

Each case is a process of its own: a model with random weights in the product's trainer, two steps of the largest
micro-batch. Measured is the most resident memory while training over what was resident before the model was made
(Linux). malloc gives large blocks back as they are freed (`MALLOC_…`), since what it keeps is no need of the run.

Vocabularies are at least as wide as a tile of TRL's fused head (32,768): of a tile that is wider than the vocabulary, a
CPU never touches the rest, which a GPU would have allocated.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from itertools import chain
from pathlib import Path

GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
# hidden size, intermediate size, layers, heads, key-value heads, vocabulary
SHAPES = {
    "deep": (512, 1408, 14, 8, 2, 32_768),
    "wide": (1280, 3456, 4, 10, 5, 32_768),
    "vocabulary": (640, 1728, 6, 10, 10, 98_304),
}
KINDS = ("plain", "recomputed", "lora", "packed")
LENGTH, ROWS = 256, 4


def config_of(shape: str):
    """Return a Llama configuration."""
    from transformers import LlamaConfig

    hidden, intermediate, layers, heads, kv_heads, vocabulary = SHAPES[shape]
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=ROWS * LENGTH,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
    )


def run(case: str) -> dict:
    """Train one case in this process; return bytes: estimated and measured."""
    import numpy as np
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import LlamaForCausalLM, PrinterCallback, ProgressCallback

    from tests.benchmarks.train import _forget_peak_mib, _resident_mib
    from tests.train.conftest import build_tokenizer
    from tests.train.runs import trainer_over
    from train.reports.memory import estimate, largest_batch
    from train.settings.config import GOConfig

    shape, kind = case.rsplit("-", 1)
    config, packed = config_of(shape), kind == "packed"
    peft_config = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM") if kind == "lora" else None
    rng = np.random.default_rng(0)
    rows = [rng.integers(2, 270, LENGTH).tolist() for _ in range(ROWS * 6)]
    data = {"input_ids": rows, "supervised": [[False] * 8 + [True] * (LENGTH - 8)] * len(rows)}
    data["group"] = [(rng.random(LENGTH) < 0.3).astype(int).tolist() for _ in rows]
    if packed:
        starts = range(0, len(rows), ROWS)
        data = {name: [list(chain(*values[i : i + ROWS])) for i in starts] for name, values in data.items()}
        data["seq_lengths"] = [[LENGTH] * ROWS] * (len(rows) // ROWS)
    args = GOConfig(
        output_dir=tempfile.mkdtemp(prefix="benchmark-memory-"),
        max_steps=2,
        per_device_train_batch_size=1 if packed else ROWS,
        packing=packed,
        max_length=ROWS * LENGTH if packed else LENGTH,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=kind == "recomputed",
        save_strategy="no",
        optim="adamw_torch_fused",
        dataloader_pin_memory=False,
    )
    lengths = np.array([len(row) for row in data["input_ids"]])
    batch = largest_batch(lengths, args, flat=packed, masked=packed)
    found = estimate(config, batch, args, "float32", peft_config, args.gradient_checkpointing)
    tokenizer = build_tokenizer()
    warm_up()
    before = _resident_mib("VmRSS")
    rows = Dataset.from_dict(data).with_format("numpy")
    trainer = trainer_over(rows, LlamaForCausalLM(config), args, tokenizer, peft_config=peft_config)
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    _forget_peak_mib()
    trainer.train()
    measured = (_resident_mib("VmHWM") - before) * 2**20
    return {"case": case, "estimated": found.total, "measured": measured, "of_it": found.activations}


def warm_up() -> None:
    """Load what a training loads, so that it counts as there before."""
    import torch

    layer = torch.nn.Linear(64, 64)
    optimizer = torch.optim.AdamW(layer.parameters(), fused=True)
    layer(torch.randn(64, 64)).sum().backward()
    optimizer.step()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="one case, such as deep-packed, in this process")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args()
    if options.only:
        print(json.dumps(run(options.only)))
        return
    found = []
    for case in [f"{shape}-{kind}" for shape in SHAPES for kind in KINDS]:
        command = [sys.executable, "-m", "tests.benchmarks.memory", "--only", case]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **GIVE_BACK}, check=False)
        if done.returncode:
            raise SystemExit(f"{case} failed:\n{done.stderr[-3000:]}")
        found.append(json.loads(done.stdout.splitlines()[-1]))
        line, mib = found[-1], 2**20
        ratio = line["estimated"] / line["measured"]
        print(
            f"{case:20} estimated {line['estimated'] / mib:7,.0f} MiB   measured {line['measured'] / mib:7,.0f} MiB   "
            f"{ratio - 1:+.1%}",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
