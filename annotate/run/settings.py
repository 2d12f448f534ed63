"""What `annotate run` takes, and what can be said of it before any file is read.

What enters: the flags. What leaves: `Settings`, checked. Next: `annotate.run.pipeline` runs them.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from annotate.groupers import grouper_class
from annotate.groupers.base import Grouper, GrouperOptions
from annotate.records.conversations import FORMATS
from common.errors import UserError, raise_together
from common.hints import did_you_mean

MAX_LENGTH = 4096
OVERLONG = ("truncate", "split")


@dataclass(frozen=True)
class Settings:
    """Everything that `annotate run` takes."""

    data: str | tuple[str, ...] | None  # None: what the output directory holds, or the sample for a new one
    groupers: tuple[str, ...]  # none with `append` or `refit`: those that the output directory has
    out: Path | str
    tokenizer: str | None = None
    tokenizer_revision: str | None = None
    data_revision: str | None = None
    template: str | None = None
    format_name: str | None = None
    max_length: int | None = None  # None: what the output directory has, else MAX_LENGTH
    limit: int | None = None
    columns: dict[str, str] = field(default_factory=dict)  # field -> column, as `annotate.records.columns` reads them
    overlong: str = "truncate"  # or "split"
    rows_per_shard: int | None = None  # None: what the output directory has, else what the source's size gives
    engine: str = "ray"
    address: str | None = None
    workers: int | None = None
    gpus_per_worker: float = 1.0
    append: bool = False  # `data` is added to the finished directory
    refit: bool = False  # groupers that were fitted are fitted again, on every shard
    options: GrouperOptions = field(default_factory=GrouperOptions)


def check_settings(settings: Settings) -> None:
    """Raise one `UserError` with everything that is wrong with the settings by themselves."""
    problems = []
    kept = settings.append or settings.refit
    if not settings.groupers and not kept:
        problems.append("--grouper: name at least one.")
    classes: list[type[Grouper]] = []
    for name in dict.fromkeys(settings.groupers):
        try:
            classes.append(grouper_class(name))
        except UserError as error:
            problems.append(str(error))
    if settings.format_name is not None and settings.format_name not in FORMATS:
        near = did_you_mean(settings.format_name, FORMATS)
        problems.append(f"--format {settings.format_name}: expected one of {', '.join(FORMATS)}.{near}")
    if settings.overlong not in OVERLONG:
        near = did_you_mean(settings.overlong, OVERLONG)
        problems.append(f"--overlong {settings.overlong}: expected one of {', '.join(OVERLONG)}.{near}")
    for flag, value in (("--limit", settings.limit), ("--rows-per-shard", settings.rows_per_shard)):
        if value is not None and value < 1:
            problems.append(f"{flag} {value}: expected at least 1.")
    if settings.max_length is not None and settings.max_length < 2:
        problems.append(f"--max-length {settings.max_length}: expected at least 2 tokens.")
    if settings.append and settings.data is None:
        problems.append("--append: name the records that are to be added, with --data.")
    if settings.append and settings.tokenizer_revision is not None and settings.tokenizer is None:
        problems.append("--tokenizer-revision: with --append the directory's own tokenizer is taken. Drop the flag.")
    if not problems and settings.groupers:  # an unknown grouper could have been the one that reads it
        read = {item.name for kind in classes for item in dataclasses.fields(kind.Flags)}
        problems += [
            f"--{name.replace('_', '-')} is read by none of {', '.join(settings.groupers)}. Drop it, or add a grouper."
            for name in settings.options.flags
            if name not in read
        ]
    for kind in classes:
        try:
            settings.options.read(kind.Flags)
        except UserError as error:
            problems.append(str(error))
    raise_together(list(dict.fromkeys(problems)))
