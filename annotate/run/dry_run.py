"""`annotate run --dry-run`: what a run would read and make, without making anything.

What enters: `Settings`. What leaves: lines for the terminal. The first records are read, rendered and tokenized; what
is said of all of them is worked out from their sizes.
"""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from annotate.groupers import grouper_class
from annotate.records.columns import rename
from annotate.records.conversations import DocumentError, to_conversation
from annotate.records.sources import Source, canonical_json
from annotate.run.appending import check_mode
from annotate.run.inputs import RECORDS_TO_DETECT, Inputs, from_manifest, from_source
from annotate.run.planning import COLUMN_BYTES, default_rows
from annotate.run.settings import Settings, check_settings
from annotate.tokens.templates import make_template
from common.manifest import TOKENIZER_NAME, load_manifest
from common.storage import locate


def describe_run(settings: Settings) -> list[str]:
    """Return what the run would do.

    Raises:
        UserError: what the run itself would raise before its first record.
    """
    check_settings(settings)
    held: dict[str, Any] = {}
    columns: list[str] = []
    if settings.append or settings.refit:
        manifest = load_manifest(settings.out)
        check_mode(settings, manifest)
        fitted = [info.name for info in manifest.groupers if grouper_class(info.name).needs_fit]
        if settings.data is None:
            line = f"{', '.join(fitted)} would be fitted on the {len(manifest.shards):,} shards of {settings.out}"
            return [line, "nothing was written (--dry-run)", "Next: the same command without --dry-run"]
        held, columns = from_manifest(manifest).identity(), list(manifest.columns)
        tokenizer = settings.tokenizer or str(locate(settings.out) / TOKENIZER_NAME)
        settings = dataclasses.replace(settings, tokenizer=tokenizer)
    with tempfile.TemporaryDirectory(prefix="sft-go-") as folder:
        inputs = from_source(settings, held, locate(Path(folder)))
        source = inputs.source
        assert source is not None
        values = source.first_values(RECORDS_TO_DETECT)
    rows, size, exact = _rows(source, values, settings.limit)
    options = dataclasses.replace(
        settings.options,
        tokenizer=inputs.tokenizer.name,
        tokenizer_fingerprint=inputs.tokenizer.fingerprint,
        max_length=inputs.max_length,
    )
    if not columns:
        columns = [name for kind in settings.groupers for name in grouper_class(kind).from_options(options).columns]
    a_shard = inputs.rows_per_shard or default_rows(rows, size)
    documents, tokens, rejects = _first_documents(inputs, values)
    about = "" if exact else "about "
    lines = [
        ("source", f"{source.location}, {size:,} bytes of records, format {inputs.info.format}"),
        ("records", f"{about}{rows:,}"),
        ("tokenizer", f"{inputs.tokenizer.name}, template {inputs.template}, at most {inputs.max_length:,} tokens"),
        ("first records", f"{documents} documents of {tokens / max(1, documents):.0f} tokens, {rejects} rejects"),
        ("columns", ", ".join(columns)),
        ("shards", f"{about}{-(-rows // a_shard):,} of {a_shard:,} records into {settings.out}"),
        ("disk", f"below {size * COLUMN_BYTES:,} bytes"),
        ("memory", f"of a worker, for one shard: below {4 * COLUMN_BYTES * size * a_shard // max(1, rows):,} bytes"),
    ]
    width = max(len(name) for name, _ in lines)
    found = [f"{name:<{width}}  {text}" for name, text in lines]
    return [*found, "nothing was written (--dry-run)", "Next: the same command without --dry-run"]


def _rows(source: Source, values: list[Any], limit: int | None) -> tuple[int, int, bool]:
    """Return the records, their bytes, and whether these are known: from row counts, or else from the first records."""
    mean = sum(len(canonical_json(value)) for value in values) / max(1, len(values))
    rows, exact = 0.0, True
    if source.hub is not None:
        rows = len(source.hub.load()) * sum(source.shares or (1.0,))
    for number, (place, size) in enumerate(source.files):
        share = source.shares[number] if source.shares else 1.0
        if place.name.endswith(".parquet"):
            from annotate.records.ranges import open_parquet

            with open_parquet(place) as file:
                rows += share * file.metadata.num_rows
        else:
            exact = False
            rows += share * size / max(1.0, mean)
    exact = (exact and set(source.shares) <= {1.0}) or len(values) < RECORDS_TO_DETECT
    count = len(values) if len(values) < RECORDS_TO_DETECT else max(1, round(rows))
    count = min(count, limit or count)
    return count, round(count * mean), exact


def _first_documents(inputs: Inputs, values: list[Any]) -> tuple[int, int, int]:
    """Return documents, tokens and rejects among the first records."""
    assert inputs.target is not None
    template = make_template(inputs.template, inputs.target.tokenizer)
    documents = []
    for value in values:
        try:
            documents.append(template(to_conversation(rename(value, inputs.info.columns), inputs.info.format)))
        except DocumentError:
            continue
    names = [str(number) for number in range(len(documents))]
    batch = inputs.target.tokenize(documents, names, range(len(documents)), inputs.max_length, with_spans=False).batch
    return len(batch), batch.num_tokens, len(values) - len(batch)
