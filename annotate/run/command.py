"""`annotate run` as a command: its own flags, and what it makes of them.

What enters: the flags as typer read them; the groupers bring theirs (`flags.py`). What leaves: `Settings`, which
`pipeline.py` runs. Heavy imports happen inside, so `--help` answers at once.
"""

from typing import Annotated, Any, Optional

import typer
from rich.console import Console

SOURCE, OUTPUT, ENGINE = "Source", "Output", "Engine"
# typer reads Optional[...], and not X | None, the same way in every version since 0.9.
OptionalStr = Optional[str]  # noqa: UP045
OptionalInt = Optional[int]  # noqa: UP045


def run(
    data: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            help="`sample` (shipped), `alpaca` or `lima` (a file in $SFT_GO_DATA_HOME, else the hub); a .json, .jsonl, "
            ".csv, .tsv or .parquet file, also as .gz or .zst; a directory or a 'pattern*' of files; paths, or URLs "
            "such as s3://; - for standard input; a hub id, with configuration and split as owner/name:config[split]. "
            "Several are read one after another; NAME@0.3 takes three tenths of the records, @2 all of them twice. "
            "Default: what --out holds, or `sample` for a new one.",
            rich_help_panel=SOURCE,
        ),
    ] = None,
    data_revision: Annotated[
        OptionalStr, typer.Option(help="Revision of a hub dataset.", rich_help_panel=SOURCE)
    ] = None,
    format: Annotated[
        OptionalStr,
        typer.Option(
            help="Record format: alpaca, prompt_completion, messages, sharegpt, lima or text. Default: detected from "
            "the columns.",
            rich_help_panel=SOURCE,
        ),
    ] = None,
    map: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            help="A column under another name, field=column, such as --map prompt=question --map completion=answer.",
            rich_help_panel=SOURCE,
        ),
    ] = None,
    text_column: Annotated[
        OptionalStr,
        typer.Option(help="The column of a plain corpus; all of it is supervised.", rich_help_panel=SOURCE),
    ] = None,
    limit: Annotated[OptionalInt, typer.Option(help="Only the first so many records.", rich_help_panel=SOURCE)] = None,
    tokenizer: Annotated[
        OptionalStr,
        typer.Option(
            help="Target tokenizer, the one of the model to be fine-tuned: a directory or a hub id. Default: "
            "meta-llama/Llama-3.2-3B, or the shipped one for `--data sample`.",
            rich_help_panel=SOURCE,
        ),
    ] = None,
    tokenizer_revision: Annotated[
        OptionalStr, typer.Option(help="Revision of a hub tokenizer.", rich_help_panel=SOURCE)
    ] = None,
    template: Annotated[
        OptionalStr,
        typer.Option(
            help="alpaca, plain (`User: … Assistant: …`) or chat (the tokenizer's own). Default: alpaca for Alpaca "
            "records, else plain.",
            rich_help_panel=SOURCE,
        ),
    ] = None,
    max_length: Annotated[
        OptionalInt,
        typer.Option(help="Cut documents to so many tokens, on the right. Default: 4096.", rich_help_panel=SOURCE),
    ] = None,
    overlong: Annotated[
        str,
        typer.Option(
            help="Documents above --max-length: truncate, or split (into several, where turns or sentences end).",
            rich_help_panel=SOURCE,
        ),
    ] = "truncate",
    out: Annotated[
        str,
        typer.Option(
            help="Shard directory, a path or a URL such as s3://; run again to go on, or to add a column.",
            rich_help_panel=OUTPUT,
        ),
    ] = "shards",
    append: Annotated[
        bool,
        typer.Option(
            "--append",
            help="Add the records of --data to the finished directory, as new shards with its groupers. Those that "
            "were fitted on the corpus keep their state, if not --refit.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    refit: Annotated[
        bool,
        typer.Option(
            "--refit",
            help="Fit the directory's fitted groupers on all of its shards, and write their columns anew.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    rows_per_shard: Annotated[
        OptionalInt,
        typer.Option(
            help="Source records a shard, the unit of work. Default: 64 MB of columns, and no fewer than 64 shards of "
            "1,000 records.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    engine: Annotated[
        str, typer.Option(help="ray, or local (in this process; the same shards).", rich_help_panel=ENGINE)
    ] = "ray",
    address: Annotated[
        OptionalStr,
        typer.Option(
            help="An existing Ray cluster, such as `auto`; --out is then a path that all nodes see, or a URL. "
            "Default: a local Ray.",
            rich_help_panel=ENGINE,
        ),
    ] = None,
    workers: Annotated[
        OptionalInt, typer.Option(help="Ray workers. Default: one a CPU.", rich_help_panel=ENGINE)
    ] = None,
    gpus_per_worker: Annotated[
        float, typer.Option(help="Share of a GPU for a worker with a model, such as 0.5.", rich_help_panel=ENGINE)
    ] = 1.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be read and made, and make nothing.")
    ] = False,
    grouper: list[str] | None = None,
    **flags: Any,
) -> None:
    """Score every token of an instruction dataset and write Parquet shards.

    Examples:

    - `annotate run` scores the shipped sample by TF-IDF into ./shards

    - `annotate run --grouper tfidf --data alpaca --out shards/alpaca` takes the paper's data and tokenizer

    - `annotate run --grouper llmlingua2 --data my.jsonl --tokenizer my/model --out shards/my`

    - the same again with `--grouper frequency` adds a column; after a kill, it goes on where it stopped

    - `annotate run --data more.jsonl --append --refit --out shards/my` adds records, and counts terms anew over all
    """
    from annotate.groupers.base import GrouperOptions
    from annotate.records.columns import parse_mapping
    from annotate.run.dry_run import describe_run
    from annotate.run.interruption import interruptible
    from annotate.run.pipeline import run as run_pipeline
    from annotate.run.settings import Settings
    from annotate.run.summaries import print_summary

    console = Console(stderr=True, soft_wrap=True)
    settings = Settings(
        data=tuple(data) if data else None,
        columns=parse_mapping(map or [], text_column),
        overlong=overlong,
        groupers=tuple(dict.fromkeys(grouper or ([] if append or refit else ["tfidf"]))),
        out=out,
        tokenizer=tokenizer,
        tokenizer_revision=tokenizer_revision,
        data_revision=data_revision,
        template=template,
        format_name=format,
        max_length=max_length,
        limit=limit,
        rows_per_shard=rows_per_shard,
        engine=engine,
        address=address,
        workers=workers,
        gpus_per_worker=gpus_per_worker,
        append=append,
        refit=refit,
        options=GrouperOptions(flags={name: value for name, value in flags.items() if value is not False}),
    )
    if dry_run:
        print("\n".join(describe_run(settings)))
        return
    with interruptible():
        print_summary(run_pipeline(settings, console))
