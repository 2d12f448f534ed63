"""What a run tells the user at its end: counts, rejects by reason, speed, where the shards are, what to type next."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from annotate.run.pipeline import Summary
from annotate.run.workspace import RECORDS
from common.manifest import REJECTS_NAME, GrouperInfo


def print_summary(summary: Summary) -> None:
    """Print the summary of a run to stdout: a table as wide as it needs to be, so that pipes get whole lines."""
    console = Console(soft_wrap=True, highlight=False)
    manifest, counts = summary.manifest, summary.manifest.counts
    table = Table(show_header=False, box=None, pad_edge=False, highlight=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    supervised = counts.supervised_tokens / max(1, counts.tokens)
    for part in manifest.parts:
        table.add_row("source", f"{part.source.name} ({part.source.location}), format {part.source.format}")
    table.add_row("tokenizer", f"{manifest.tokenizer.name}, template {manifest.template}")
    table.add_row("documents", f"{counts.documents:,} ({counts.truncated:,} cut at {manifest.max_length:,} tokens)")
    table.add_row("tokens", f"{counts.tokens:,}, of which {counts.supervised_tokens:,} supervised ({supervised:.1%})")
    happened: Counter[str] = Counter()
    for shard in manifest.shards:
        happened.update({name: int(count) for name, count in shard.counters.get(RECORDS, {}).items()})
    if happened["split_documents"]:
        pieces = happened["further_pieces"]
        table.add_row("split", f"{happened['split_documents']:,} long documents into {pieces:,} further pieces")
    if happened["dropped_turns"]:
        table.add_row("dropped", f"{happened['dropped_turns']:,} turns at the end of conversations, without a response")
    rejects = sum(counts.rejects.values())
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts.rejects.items())
    table.add_row("rejects", f"{rejects:,} ({reasons}), see {summary.out / REJECTS_NAME}" if rejects else "0")
    for grouper in manifest.groupers:
        report = ", ".join(f"{key} {_short(value)}" for key, value in grouper.report.items())
        kinds = ", ".join(f"{name} ({kind})" for name, kind in grouper.columns.items())
        table.add_row("grouper", f"{kinds}{': ' if report else ''}{report}{_fitted_on(grouper, len(manifest.shards))}")
    table.add_row("shards", f"{len(manifest.shards):,} in {summary.out}")
    if summary.already_complete:
        table.add_row("work", "nothing to do: the directory is complete and every shard is whole")
    else:
        rate = summary.tokens_made / max(1e-9, summary.seconds)
        table.add_row(
            "work",
            f"{summary.shards_made:,} shards made in {summary.seconds:.1f} s, {rate:,.0f} tokens/s ({summary.engine})",
        )
    console.print(table)
    for line in warn_of_rejects(summary):
        console.print(line, markup=False)
    column = next(iter(manifest.columns))
    objective = "rho1" if manifest.columns[column] == "reference_loss" else "go"
    tokenizer = Path(manifest.tokenizer.name)
    has_model = (tokenizer / "config.json").is_file() or not tokenizer.exists()
    model = manifest.tokenizer.name if has_model else "tiny"
    named = f" --grouper {column}" if len(manifest.columns) > 1 else ""
    console.print(
        f"\nNext: train run --shards {summary.out}{named} --objective {objective} --eta 0.7 --model {model}",
    )


def warn_of_rejects(summary: Summary) -> list[str]:
    """Return what to say where more than one record in twenty became no document: the reasons, with an example each."""
    manifest = summary.manifest
    rejects = manifest.counts.rejects
    total, records = sum(rejects.values()), sum(shard.source_rows for shard in manifest.shards)
    if total * 20 <= records:
        return []
    examples: dict[str, dict[str, Any]] = {}
    wanted = sorted(rejects, key=lambda reason: -rejects[reason])[:3]
    with (summary.out / REJECTS_NAME).open() as file:
        for line in file:
            reject = json.loads(line)
            examples.setdefault(reject["reason"], reject)
            if examples.keys() >= set(wanted):
                break
    lines = [f"\nWarning: {total:,} of {records:,} records became no document ({total / records:.0%})."]
    for reason in wanted:
        example = examples.get(reason)
        shown = f", such as row {example['source_row']}: {example['message']}" if example else ""
        lines.append(f"  {rejects[reason]:,} {reason}{shown}")
    return [*lines, f"  All of them, with their rows: {summary.out / REJECTS_NAME}"]


def _fitted_on(grouper: GrouperInfo, shards: int) -> str:
    """Say that a state counts the first shards only."""
    if grouper.fitted_shards is None:
        return ""
    return f" (fitted on the first {grouper.fitted_shards:,} of {shards:,} shards; --refit counts all)"


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return f"{text[:12]}…" if len(text) == 64 else text
