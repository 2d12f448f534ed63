"""What padding costs: padded rows beside documents that are laid end to end, on real shards.

    python -m tests.benchmarks.padding --shards <dir> [<dir> ...]

The same documents in the same order through the product's trainer, three ways: padded; end to end with a mask over the
whole row (transformers' own way with `sdpa`); end to end with attention that is told lengths (`train.loop.attention`).
Printed are the share of padding; tokens without padding a second by the clock and a second of processor time (of each
step the fastest of all rounds, which alternate; a machine that does other work as well tells by the latter); the median
over the steps of how many times the padded step's processor time that is; and how far the losses of the first step, on
the same weights, lie apart in float32.
"""

import argparse
import os
import statistics
import tempfile
import time
import warnings
from pathlib import Path

WAYS = ("padded", "mask", "lengths")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", nargs="+", required=True)
    parser.add_argument("--grouper", default="tfidf")
    parser.add_argument("--objective", default="go")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--steps", type=int, default=6, help="measured steps of a round, after one of warm-up")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--max_length", type=int, default=1024)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    import torch

    torch.set_num_threads(options.threads)
    print(
        f"{options.threads} threads, torch {torch.__version__}, {options.objective}, batches of {options.batch}, ",
        end="",
    )
    print(f"Llama of {options.layers} layers of {options.hidden}, documents of at most {options.max_length} tokens")
    for shards in options.shards:
        compare(shards, options)


def compare(shards: str, options: argparse.Namespace) -> None:
    """Print the lines of one shard directory."""
    from datasets import disable_progress_bars

    from tests.train.runs import plan_for
    from train.data.loading import load_data, open_shards
    from train.loop.fitting import padding_share, row_lengths

    disable_progress_bars()
    opened = open_shards([shards])
    plan = plan_for(opened, options.grouper, options.objective)
    rows = load_data(
        opened, plan, options.max_length, 0.0, 0, Path(tempfile.mkdtemp(prefix="benchmark-padding-"))
    ).train
    lengths = row_lengths(rows)
    print(f"{Path(shards).name}: {len(rows):,} documents, {lengths.mean():.0f} tokens on average, ", end="")
    print(f"{padding_share(lengths, options.batch):.1%} of a batch of {options.batch} is padding", flush=True)
    rows = rows.shuffle(seed=0).select(range((options.steps + 1) * options.batch)).flatten_indices()
    ways = list(dict.fromkeys(["padded", *options.ways]))
    times: dict[str, list[list[tuple[float, float]]]] = {way: [] for way in ways}
    losses: dict[str, list[float]] = {}
    for number in range(options.rounds):
        for way in ways if number % 2 == 0 else ways[::-1]:
            took_s, losses[way], tokens = train(way, rows, opened, options)
            times[way].append(took_s)
    # Of each step, the fastest of all rounds: by the clock, and of processor time.
    fastest = {
        way: [[min(took[kind] for took in rounds) for rounds in zip(*times[way], strict=True)] for kind in (0, 1)]
        for way in ways
    }
    for way in ways:
        clock_s, processor_s = fastest[way]
        ratio = statistics.median(padded / own for padded, own in zip(fastest["padded"][1], processor_s, strict=True))
        apart = abs(losses[way][0] - losses["padded"][0])
        print(
            f"  {way:8} {tokens / sum(clock_s):8,.0f} tokens/s {tokens / sum(processor_s):8,.0f} tokens per processor "
            f"second, {ratio:.2f} x padded   first loss {losses[way][0]:.7f}, {apart:.1e} apart",
            flush=True,
        )


def train(way: str, rows, opened, options: argparse.Namespace) -> tuple[list[tuple[float, float]], list[float], int]:
    """Train once; return the measured steps' seconds (clock, processor), all losses, and the measured steps' tokens."""
    import torch
    from transformers import (
        AutoTokenizer,
        LlamaConfig,
        LlamaForCausalLM,
        PrinterCallback,
        ProgressCallback,
        TrainerCallback,
    )

    from tests.train.runs import trainer_over
    from train.loop.attention import use_lengths
    from train.loop.memory import keep_freed_memory
    from train.settings.config import GOConfig

    class Clock(TrainerCallback):
        def on_step_begin(self, *arguments, **keywords):
            self.began = now()

        def on_step_end(self, *arguments, **keywords):
            took_s.append(tuple(end - begin for begin, end in zip(self.began, now(), strict=True)))

    def now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    took_s: list[tuple[float, float]] = []
    keep_freed_memory()
    tokenizer = AutoTokenizer.from_pretrained(str(opened[0].path / "tokenizer"))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=options.hidden,
        intermediate_size=4 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=options.max_length,
        tie_word_embeddings=True,
    )
    args = GOConfig(
        output_dir=tempfile.mkdtemp(prefix="benchmark-padding-"),
        objective=options.objective,
        max_steps=options.steps + 1,
        per_device_train_batch_size=options.batch,
        train_sampling_strategy="sequential",
        padding_free=way != "padded",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        dataloader_pin_memory=False,
    )
    trainer = trainer_over(rows, LlamaForCausalLM(config), args, tokenizer)
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(Clock())
    if way == "lengths" and not use_lengths(trainer.model):
        raise SystemExit("the model does not agree with attention that is told lengths")
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    tokens = sum(len(row["input_ids"]) for row in rows.select(range(options.batch, len(rows))))
    return took_s[1:], losses, tokens


if __name__ == "__main__":
    main()
