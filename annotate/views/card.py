"""`annotate card`: what a shard directory holds, written for people who find it on the hub.

What enters: a complete shard directory. What leaves: README.md with the header that the hub reads, counts, a histogram
of each score column and how to use it; and example.svg, a document with coloured tokens. Next: `annotate.views.hub`.
"""

import io
import json
from pathlib import Path

import numpy as np
from rich.console import Console

from annotate.views.inspection import inspect_shards, short_name
from common.errors import UserError
from common.files import atomic_path
from common.manifest import Manifest
from common.shards import ShardDirectory
from common.storage import Place

CARD_NAME, EXAMPLE_NAME = "README.md", "example.svg"
MARK = "<!-- made by `annotate card` -->"  # a card without it is somebody's own, and stays
TOKENS = 1_000_000  # supervised tokens that a histogram is made of
BINS = 12
SIZES = [(1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")]


def write_card(shards: Place, eta: float) -> list[Path]:
    """Write the card into a directory on disk; return the files.

    Raises:
        UserError: no complete directory is there, it is on a store, or it has a card that was written by hand.
    """
    directory = ShardDirectory(shards, verify=False)
    home = directory.path.local
    if home is None:
        raise UserError(f"annotate card {shards}: expected a directory on this machine. Copy it here first.")
    card, example = home / CARD_NAME, home / EXAMPLE_NAME
    if card.is_file() and MARK not in card.read_text(encoding="utf-8", errors="replace"):
        raise UserError(f"{card}: was not made by `annotate card`. Move it away, or keep it.")
    console = Console(record=True, file=io.StringIO(), width=100, force_terminal=True)
    inspect_shards(shards, [], eta, "threshold", None, 1, None, console)
    with atomic_path(example) as place:
        place.write_text(console.export_svg(title=f"eta {eta:g}"), encoding="utf-8")
    with atomic_path(card) as place:
        place.write_text(card_text(directory, eta), encoding="utf-8")
    return [card, example]


def card_text(directory: ShardDirectory, eta: float) -> str:
    """Return the card."""
    manifest = directory.manifest
    counts, sources = manifest.counts, [part.source for part in manifest.parts]
    name = ", ".join(short_name(source.name) for source in sources)
    rejects = ", ".join(f"{count:,} {reason}" for reason, count in counts.rejects.items()) or "none"
    columns = ", ".join(f"`{column}` ({kind.replace('_', ' ')})" for column, kind in manifest.columns.items())
    lines = [
        *_header(manifest, name),
        f"# {name}: token importance",
        MARK,
        "",
        "Every token of an instruction data set with a score, for fine-tuning with group optimization (SFT-GO).",
        "",
        "| what | |",
        "| --- | --- |",
        *[f"| source | {item.name}, format {item.format}, content `{item.content_hash[:12]}` |" for item in sources],
        f"| tokenizer | {short_name(manifest.tokenizer.name)}, fingerprint `{manifest.tokenizer.fingerprint[:12]}` |",
        f"| template | {manifest.template}, at most {manifest.max_length:,} tokens, {counts.truncated:,} cut |",
        f"| documents | {counts.documents:,} |",
        f"| tokens | {counts.tokens:,}, {counts.supervised_tokens:,} supervised |",
        f"| rejects | {rejects} |",
        f"| columns | {columns} |",
        "",
        f"![A document; at eta {eta:g} the important tokens are marked]({EXAMPLE_NAME})",
        "",
        "## Scores of supervised tokens",
        "",
        *_histograms(directory),
        "## Use",
        "",
        "```python",
        "import datasets",
        "",
        'shards = datasets.load_dataset("parquet", data_files="part-*.parquet", split="train")',
        "```",
        "",
        "```bash",
        f"train run --shards <this directory> --grouper {next(iter(manifest.columns))} --eta {eta:g} --model <model>",
        "```",
    ]
    return "\n".join(lines) + "\n"


def _header(manifest: Manifest, name: str) -> list[str]:
    """Return the YAML that the hub reads; JSON strings are YAML."""
    size = next((text for most, text in SIZES if manifest.counts.documents < most), "n>1M")
    return [
        "---",
        f"pretty_name: {json.dumps(f'{name}: token importance')}",
        "tags:",
        "- token-importance",
        "- sft-go",
        "size_categories:",
        f"- {size}",
        "configs:",
        "- config_name: default",
        '  data_files: "part-*.parquet"',
        "---",
        "",
    ]


def _histograms(directory: ShardDirectory) -> list[str]:
    """Return a table a column: the share of tokens in each of `BINS` equal steps from the least to the largest."""
    names = list(directory.columns)
    values: dict[str, list[np.ndarray]] = {name: [] for name in names}
    held = 0
    for table in directory.tables(["supervised", *names]):
        supervised = table["supervised"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        for name in names:
            values[name].append(table[name].combine_chunks().flatten().to_numpy()[supervised])
        held += int(supervised.sum())
        if held >= TOKENS:
            break
    lines = []
    for name in names:
        scores = np.concatenate(values[name])
        counts, edges = np.histogram(scores, BINS)
        most = max(1, int(counts.max()))
        lines += [f"`{name}`, over {len(scores):,} tokens", "", "```"]
        for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
            bar = "█" * round(40 * int(count) / most)
            lines.append(f"{low:>10.4g} to {high:<10.4g} {count / max(1, len(scores)):>6.1%} {bar}".rstrip())
        lines += ["```", ""]
    return lines
