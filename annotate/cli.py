"""The command `annotate`: score every token of an instruction dataset, and check or look at the result.

Heavy imports (torch, transformers, Ray, pyarrow) happen inside the commands, so `--help` answers at once.
"""

import os
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console

from common.errors import UserError

app = typer.Typer(
    help="Score every token of an instruction dataset by importance, once, and write the scores as Parquet shards that "
    "`train run` and any other trainer can read.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

SOURCE, SCORES, OUTPUT, ENGINE = "Source", "Scores", "Output", "Engine"
# typer reads Optional[...], and not X | None, the same way in every version since 0.9.
OptionalStr = Optional[str]  # noqa: UP045
OptionalInt = Optional[int]  # noqa: UP045


@app.command()
def run(
    data: Annotated[
        str,
        typer.Option(
            help="`sample` (shipped), `alpaca` or `lima` (a file in $SFT_GO_DATA_HOME, else the hub), a .json, .jsonl, "
            ".csv or .parquet file, a directory of Parquet files, or a hub id.",
            rich_help_panel=SOURCE,
        ),
    ] = "sample",
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
        int, typer.Option(help="Cut documents to so many tokens, on the right.", rich_help_panel=SOURCE)
    ] = 4096,
    grouper: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            help="How to score: tfidf, frequency, random, llmlingua2 or rho1. Give it several times for several "
            "columns; given later with the same --out it adds a column. Default: tfidf.",
            rich_help_panel=SCORES,
        ),
    ] = None,
    seed: Annotated[OptionalInt, typer.Option(help="Seed of `random`. Default: 0.", rich_help_panel=SCORES)] = None,
    compressor_model: Annotated[
        OptionalStr,
        typer.Option(
            help="Compressor of `llmlingua2`: a directory or a hub id. Default: "
            "microsoft/llmlingua-2-xlm-roberta-large-meetingbank.",
            rich_help_panel=SCORES,
        ),
    ] = None,
    package_parity: Annotated[
        bool,
        typer.Option(
            "--package-parity",
            help="Score exactly as the llmlingua 0.2.2 package does, foreign special tokens included (`llmlingua2`).",
            rich_help_panel=SCORES,
        ),
    ] = False,
    reference_model: Annotated[
        OptionalStr,
        typer.Option(help="Reference model of `rho1`: a directory or a hub id.", rich_help_panel=SCORES),
    ] = None,
    base_model: Annotated[
        OptionalStr,
        typer.Option(
            help="Also write `rho1_excess`, the loss of this model less that of the reference model.",
            rich_help_panel=SCORES,
        ),
    ] = None,
    dtype: Annotated[
        OptionalStr,
        typer.Option(
            help="float32, bfloat16 or float16 for models. Default: float32 on CPU, bfloat16 on GPU.",
            rich_help_panel=SCORES,
        ),
    ] = None,
    batch_tokens: Annotated[
        OptionalInt, typer.Option(help="Tokens, padding included, in one batch of a model.", rich_help_panel=SCORES)
    ] = None,
    device: Annotated[
        OptionalStr,
        typer.Option(help="cpu or cuda for models. Default: cuda where there is a GPU.", rich_help_panel=SCORES),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(help="Shard directory; run again to go on, or to add a column.", rich_help_panel=OUTPUT),
    ] = Path("shards"),
    rows_per_shard: Annotated[
        int, typer.Option(help="Source records a shard, the unit of work.", rich_help_panel=OUTPUT)
    ] = 1000,
    engine: Annotated[
        str, typer.Option(help="ray, or local (in this process; the same shards).", rich_help_panel=ENGINE)
    ] = "ray",
    address: Annotated[
        OptionalStr,
        typer.Option(
            help="An existing Ray cluster, such as `auto`; --out must then lie on a file system that all nodes share. "
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
) -> None:
    """Score every token of an instruction dataset and write Parquet shards.

    Examples:

        annotate run                                          (shipped sample, TF-IDF, into ./shards)

        annotate run --grouper tfidf --data alpaca --tokenizer meta-llama/Llama-3.2-3B --out shards/alpaca

        annotate run --grouper llmlingua2 --data my.jsonl --tokenizer path/to/model --out shards/my
    """
    from annotate.groupers.base import GrouperOptions
    from annotate.pipeline import Settings
    from annotate.pipeline import run as run_pipeline
    from annotate.summaries import print_summary

    console = Console(stderr=True, soft_wrap=True)
    options = GrouperOptions(
        seed=seed,
        compressor_model=compressor_model,
        reference_model=reference_model,
        base_model=base_model,
        dtype=dtype,
        batch_tokens=batch_tokens,
        package_parity=package_parity or None,
        device=device,
    )
    settings = Settings(
        data=data,
        groupers=tuple(dict.fromkeys(grouper or ["tfidf"])),
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
        options=options,
    )
    print_summary(run_pipeline(settings, console))


@app.command()
def verify(
    shards: Annotated[Path, typer.Argument(help="A shard directory.")],
) -> None:
    """Check shards against the manifest: sizes, checksums, schema, counts, finite scores.

    Exit code 0: the directory is whole. Exit code 1: the error names every shard that is wrong, and how.
    """
    from annotate.verification import verify_shards

    manifest = verify_shards(shards)
    counts, number = manifest.counts, len(manifest.shards)
    print(
        f"{shards}: {number:,} {'shard is' if number == 1 else 'shards are'} whole: {counts.documents:,} documents, "
        f"{counts.tokens:,} tokens, score columns {', '.join(manifest.columns)}."
    )


def main() -> None:
    """Run the command; print a user's error without a traceback."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    try:
        app()
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("Interrupted. Finished shards are kept: run the same command again to go on.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
