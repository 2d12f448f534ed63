"""What the documents of a directory are made of: source, template, tokenizer, lengths; and whether that has changed.

What enters: `Settings`, and what the output directory holds. What leaves: `Inputs`, complete; or one error that says
which setting was another one when the directory was made.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from annotate.records.columns import check_columns, rename
from annotate.records.conversations import detect_format
from annotate.records.sources import SAMPLE_TOKENIZER, Source, find_sources
from annotate.run.settings import MAX_LENGTH, Settings
from annotate.tokens.target import TargetTokenizer, check_max_length, load_target
from annotate.tokens.templates import default_template, make_template
from common.errors import UserError, raise_together
from common.manifest import Manifest, SourceInfo, SourcePart, TokenizerInfo
from common.storage import Location, is_url

DEFAULT_TOKENIZER = "meta-llama/Llama-3.2-3B"  # the paper's
RECORDS_TO_DETECT = 64


@dataclass(frozen=True)
class Inputs:
    """What determines the documents and their tokens.

    Attributes:
        source: where the records are; None where only the directory itself is read.
        info: the source as the manifest names it; its content hash is empty before the source was hashed.
        target: the loaded tokenizer; None where only the directory itself is read.
        rows_per_shard: None before the source was counted, where it was not given.
    """

    source: Source | None
    info: SourceInfo
    template: str
    tokenizer: TokenizerInfo
    target: TargetTokenizer | None
    max_length: int
    rows_per_shard: int | None

    def identity(self) -> dict[str, Any]:
        """Return the settings that determine the documents, as JSON values. Paths and names are not among them."""
        return {
            "source content": self.info.content_hash,
            "--map": self.info.columns,
            "--overlong": self.info.overlong,
            "--format": self.info.format,
            "--limit": self.info.limit,
            "--template": self.template,
            "tokenizer fingerprint": self.tokenizer.fingerprint,
            "--max-length": self.max_length,
            "--rows-per-shard": self.rows_per_shard,
        }

    def with_content(self, content_hash: str) -> "Inputs":
        """Return the same, with the source's hash."""
        return replace(self, info=replace(self.info, content_hash=content_hash))


def from_source(settings: Settings, held: dict[str, Any], unpack_into: Location) -> Inputs:
    """Find and read what the settings name.

    Args:
        held: the identity that the directory was made with; empty for a new one. It gives what is not set.
        unpack_into: where compressed files and standard input are written as plain files.

    Raises:
        UserError: something is not there, or does not fit together.
    """
    data = (settings.data,) if isinstance(settings.data, str) else settings.data or ("sample",)
    source = find_sources(data, settings.data_revision, unpack_into)
    values = source.first_values(min(RECORDS_TO_DETECT, settings.limit or RECORDS_TO_DETECT))
    if not values:
        raise UserError(f"{source.location}: expected records, found none.")
    if settings.columns:
        check_columns(settings.columns, values, source.location)
        values = [rename(value, settings.columns) for value in values]
    format_name = settings.format_name or detect_format(values, source.location)
    template = settings.template or held.get("--template") or default_template(format_name)
    name = settings.tokenizer or (str(SAMPLE_TOKENIZER) if data == ("sample",) else DEFAULT_TOKENIZER)
    name = str(Path(name).absolute()) if not is_url(name) and Path(name).is_dir() else name
    target = load_target(name, settings.tokenizer_revision)
    make_template(template, target.tokenizer)
    max_length = settings.max_length or held.get("--max-length") or MAX_LENGTH
    check_max_length(max_length, target)
    return Inputs(
        source=source,
        info=SourceInfo(
            source.name,
            source.location,
            source.revision,
            "",
            format_name,
            settings.limit,
            settings.columns,
            settings.overlong,
        ),
        template=template,
        tokenizer=TokenizerInfo(name, settings.tokenizer_revision, target.fingerprint),
        target=target,
        max_length=max_length,
        rows_per_shard=settings.rows_per_shard or held.get("--rows-per-shard"),
    )


def from_manifest(manifest: Manifest, part: SourcePart | None = None) -> Inputs:
    """Return what a complete directory, or a part of it, was made of; by default the first part."""
    part = part or manifest.parts[0]
    return Inputs(
        source=None,
        info=part.source,
        template=manifest.template,
        tokenizer=manifest.tokenizer,
        target=None,
        max_length=manifest.max_length,
        rows_per_shard=part.rows_per_shard,
    )


def refuse_source_flags(settings: Settings, manifest: Manifest) -> None:
    """Refuse flags that say of a directory's documents what they are not, where no source is given to compare."""
    held = {
        "--format": (settings.format_name, manifest.source.format),
        "--limit": (settings.limit, manifest.source.limit),
        "--map": (settings.columns or None, manifest.source.columns),
        "--overlong": (settings.overlong if settings.overlong != "truncate" else None, manifest.source.overlong),
        "--template": (settings.template, manifest.template),
        "--max-length": (settings.max_length, manifest.max_length),
        "--rows-per-shard": (settings.rows_per_shard, manifest.rows_per_shard),
        "--data-revision": (settings.data_revision, manifest.source.revision),
        "--tokenizer-revision": (settings.tokenizer_revision, manifest.tokenizer.revision),
    }
    problems = [
        f"{flag} {given}: {settings.out} was made with {there}. Drop the flag, or give another directory."
        for flag, (given, there) in held.items()
        if given is not None and given != there
    ]
    if settings.tokenizer is not None:
        target = load_target(settings.tokenizer, settings.tokenizer_revision)
        if target.fingerprint != manifest.tokenizer.fingerprint:
            problems.append(
                f"--tokenizer {settings.tokenizer}: {settings.out} was made with another one "
                f"({manifest.tokenizer.name}). Drop the flag, or give another directory."
            )
    raise_together(problems)


def refuse_changes(out: object, before: dict[str, Any], now: dict[str, Any], instead: str | None = None) -> None:
    """Raise a `UserError` that says which settings differ, and what else may have been meant."""
    if before != now:
        raise UserError(
            f"--out {out} was made with other settings: {differences(before, now)}. "
            f"Give the same settings to go on, {f'{instead}, ' if instead else ''}or another directory."
        )


def differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Say which values differ."""

    def short(value: Any) -> str:
        text = str(value)
        return f"{text[:12]}…" if len(text) == 64 else text

    changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return "; ".join(f"{key} was {short(before.get(key))}, now {short(now.get(key))}" for key in changed)
