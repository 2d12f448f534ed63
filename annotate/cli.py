"""The command `annotate`: score every token of an instruction dataset, and check or look at the result.

Heavy imports (torch, transformers, Ray, pyarrow) happen inside the commands, so `--help` answers at once.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.console import Console

from annotate.run.command import run
from annotate.run.flags import PANEL as SCORES
from annotate.run.flags import WithGroupers
from common.command import run_and_exit
from common.errors import UserError

app = typer.Typer(
    help="Score every token of an instruction dataset by importance, once, and write the scores as Parquet shards that "
    "`train run` and any other trainer can read.",
    no_args_is_help=True,
    context_settings={"token_normalize_func": lambda name: name.replace("_", "-")},  # --max_length is --max-length
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

LIMITS = "Limits"
# typer reads Optional[...], and not X | None, the same way in every version since 0.9.
OptionalStr = Optional[str]  # noqa: UP045
OptionalInt = Optional[int]  # noqa: UP045


app.command()(
    WithGroupers(
        run,
        "How to score: {names}. Give it several times for several columns; given later with the same --out it adds a "
        "column. Default: tfidf.",
    )
)


@app.command()
def verify(
    shards: Annotated[str, typer.Argument(help="A shard directory: a path or a URL.")],
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Make again what can be made again, and say what cannot."),
    ] = False,
) -> None:
    """Check every file of a shard directory against the manifest, and the shards' schema, counts and scores.

    Exit code 0: the directory is whole. Exit code 1: the error names every file that is wrong, and how.
    """
    from annotate.run.repairs import repair as repair_shards
    from annotate.run.verification import examine, refuse_damage

    if repair:
        repairs = repair_shards(shards)
        for sentence in repairs.mended:
            print(f"mended: {sentence}")
        for sentence in repairs.left:
            print(f"not mended: {sentence}", file=sys.stderr)
    found = examine(shards)
    for note in found.notes:
        print(note)
    refuse_damage(shards, [item.problem for item in found.damage])
    manifest, number = found.manifest, len(found.manifest.shards)
    counts = manifest.counts
    print(
        f"{shards}: {number:,} {'shard is' if number == 1 else 'shards are'} whole: {counts.documents:,} documents, "
        f"{counts.tokens:,} tokens, score columns {', '.join(manifest.columns)}."
    )


@app.command()
def drop(
    shards: Annotated[str, typer.Argument(help="A shard directory: a path or a URL.")],
    grouper: Annotated[str, typer.Option(help="The grouper whose columns and state go.")],
    engine: Annotated[str, typer.Option(help="local (in this process), or ray.")] = "local",
) -> None:
    """Take a grouper's columns out of a shard directory.

    The shards are written again beside the old ones, which hold until the last one is there: killed at any moment, the
    directory is whole, with the grouper or without it.
    """
    from annotate.run.dropping import drop_grouper

    manifest = drop_grouper(shards, grouper, engine)
    print(f"{shards}: {grouper} is dropped; score columns {', '.join(manifest.columns)}.")


@app.command()
def select(
    shards: Annotated[str, typer.Argument(help="A shard directory: a path or a URL.")],
    grouper: Annotated[str, typer.Option(help="What judges documents; the shards hold it.")] = "sifd",
    share: Annotated[float, typer.Option(help="The share of documents to keep, the highest scores.")] = 0.05,
    top: Annotated[
        float, typer.Option(help="The share of all supervised tokens that documents' scores are made of, the largest.")
    ] = 0.5,
    out: Annotated[str, typer.Option(help="The file of document ids, one a line, best first.")] = "documents.txt",
) -> None:
    """Keep the best documents, and write a list of their ids for `train run --documents`.

    With `sifd` that is T-SHIRT's filter: of the documents whose IFD is below 1 those with the highest S-IFD, which is
    taken over the tokens that the prompt says most about.

    Examples:

        annotate run --grouper sifd --reference-model gpt2 --tokenizer gpt2 --max-length 1024 --data alpaca --out shards

        annotate select shards --share 0.05 --out best.txt
    """
    from annotate.run.document_filter import select_documents

    found = select_documents(shards, grouper, share, top, out)
    print(f"documents  {found.documents:,}; {found.refused:,} refused by {grouper}'s own rule")
    print(f"tokens     the top {top:g}: above {found.threshold:.4g}; {found.without_top:,} documents have none of them")
    print(f"kept       {found.kept:,}, with scores from {found.highest:.4g} down to {found.lowest:.4g}; ids in {out}")
    print(f"Next: train run --shards {shards} --documents {out} --objective sft --model <model>")


@app.command()
def inspect(
    shards: Annotated[str, typer.Argument(help="A shard directory: a path or a URL.")],
    grouper: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="A score column; several stand side by side. Default: all."),
    ] = None,
    eta: Annotated[
        float, typer.Option(help="The share of supervised tokens that is not important: 0.9 marks the top tenth.")
    ] = 0.7,
    ties: Annotated[
        str, typer.Option(help="threshold: scores above the eta-quantile; rank: exactly the top 1 - eta.")
    ] = "threshold",
    document: Annotated[
        OptionalStr, typer.Option(help="A document: its row in the shards (0 is the first) or the start of its id.")
    ] = None,
    num: Annotated[int, typer.Option(help="Documents in the HTML file, from the first one on.")] = 20,
    html: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Write one self-contained HTML file, with a slider for eta, instead of to the terminal."),
    ] = None,
) -> None:
    """Look at documents with their tokens coloured by score and marked by group (the paper's figures 5 to 7).

    Examples:

        annotate inspect shards --eta 0.7                     (the first document, in the terminal)

        annotate inspect shards --grouper tfidf --grouper frequency --html out.html
    """
    from annotate.views.inspection import inspect_shards

    inspect_shards(shards, grouper or [], eta, ties, document, num, html, Console(soft_wrap=True, highlight=False))


@app.command()
def card(
    shards: Annotated[Path, typer.Argument(help="A shard directory.")],
    eta: Annotated[float, typer.Option(help="Of the example.")] = 0.7,
) -> None:
    """Write README.md and example.svg into a shard directory: what it holds, for people who find it on the hub."""
    from annotate.views.card import write_card

    written = write_card(shards, eta)
    print(f"{' and '.join(map(str, written))} written.\nNext: annotate push {shards} <owner>/<name>")


@app.command()
def push(
    shards: Annotated[Path, typer.Argument(help="A shard directory.")],
    name: Annotated[str, typer.Argument(help="The data set on the hub: owner/name.")],
    private: Annotated[bool, typer.Option("--private", help="For a new data set: only you can see it.")] = False,
    eta: Annotated[float, typer.Option(help="Of the card's example.")] = 0.7,
) -> None:
    """Upload a shard directory with its card to the Hugging Face hub."""
    from annotate.views.hub import push_shards

    url = push_shards(shards, name, private, eta)
    print(f"{url}\nNext: train run --shards hf://datasets/{name} --model <model>")


def serve(
    state: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            help="A shard directory, a path or a URL: its tokenizer, template and groupers. Several: name=DIR each.",
            rich_help_panel=SCORES,
        ),
    ] = None,
    tokenizer: Annotated[
        OptionalStr, typer.Option(help="Target tokenizer, where there is no --state.", rich_help_panel=SCORES)
    ] = None,
    template: Annotated[
        OptionalStr, typer.Option(help="Template for messages, where there is no --state.", rich_help_panel=SCORES)
    ] = None,
    max_length: Annotated[
        OptionalInt, typer.Option(help="Cut documents to so many tokens, without --state.", rich_help_panel=SCORES)
    ] = None,
    max_inputs: Annotated[OptionalInt, typer.Option(help="Inputs of a request.", rich_help_panel=LIMITS)] = None,
    max_input_characters: Annotated[
        OptionalInt, typer.Option(help="Characters of an input.", rich_help_panel=LIMITS)
    ] = None,
    max_request_tokens: Annotated[
        OptionalInt, typer.Option(help="Tokens of a request, over its inputs.", rich_help_panel=LIMITS)
    ] = None,
    max_body_bytes: Annotated[OptionalInt, typer.Option(help="Bytes of a body.", rich_help_panel=LIMITS)] = None,
    max_queue: Annotated[
        OptionalInt, typer.Option(help="Inputs that wait for a grouper.", rich_help_panel=LIMITS)
    ] = None,
    max_batch_tokens: Annotated[
        OptionalInt, typer.Option(help="Tokens scored together; 1 turns batching off.", rich_help_panel=LIMITS)
    ] = None,
    batch_window_ms: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="How long a batch waits for company.", rich_help_panel=LIMITS),
    ] = None,
    idle_timeout_s: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="How long a connection may wait before a request begins.", rich_help_panel=LIMITS),
    ] = None,
    read_timeout_s: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="How long a request may take to arrive.", rich_help_panel=LIMITS),
    ] = None,
    write_timeout_s: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="How long a client may take to read its answer.", rich_help_panel=LIMITS),
    ] = None,
    max_connections: Annotated[
        OptionalInt,
        typer.Option(
            help="Open connections; the one that has waited longest makes room for another.", rich_help_panel=LIMITS
        ),
    ] = None,
    max_header_bytes: Annotated[
        OptionalInt, typer.Option(help="Bytes of a request's headers.", rich_help_panel=LIMITS)
    ] = None,
    metrics_port: Annotated[
        OptionalInt,
        typer.Option(help="A second port with /metrics, without the key; by default there is none."),
    ] = None,
    metrics_host: Annotated[OptionalStr, typer.Option(help="Its address. Default: 127.0.0.1.")] = None,
    allow_pickle: Annotated[
        bool,
        typer.Option(
            "--allow-pickle",
            help="Also load models whose weights are not in safetensors files. Such a file can run programs.",
            rich_help_panel=SCORES,
        ),
    ] = False,
    drain_s: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="How long SIGTERM waits for what was taken.", rich_help_panel=LIMITS),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=0, max=65535)] = 8000,
    grouper: Optional[list[str]] = None,  # noqa: UP045
    **flags: Any,
) -> None:
    """Score ad-hoc text over HTTP, with a page at `/`.

    Served is what the shard directories hold, and what a flag names a model of: `--compressor-model` alone adds
    `llmlingua2`, `--reference-model` alone `rho1`; `--grouper entropy --reference-model DIR` serves that one only.

    Every flag is also a variable, `SFT_GO_MAX_INPUTS` for `--max-inputs`; so are what stands in `/info` by default. An
    API key is set by `SFT_GO_API_KEY` only, since everyone on a machine can read a command line.

    Examples:

        annotate serve --state shards

        annotate serve --state shards --compressor-model path/to/compressor --port 8080
    """
    given = {**locals(), **flags}
    given = {name: value for name, value in given.items() if name not in ("host", "port", "flags")}
    settings = {name: value for name, value in given.items() if value is not None and value is not False}
    for name, value in settings.items():
        joined = os.pathsep.join(value) if isinstance(value, list) else str(value)
        variable = "SFT_GO_GROUPERS" if name == "grouper" else f"SFT_GO_{name.upper()}"
        os.environ[variable] = joined
    try:
        import uvicorn
    except ImportError as error:
        raise UserError("annotate serve needs further packages: pip install 'sft-go[serve]'.") from error

    # uvicorn repeats the signal once it has drained; that end is a success.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # By name: annotate does not import services, which stands above it.
    drain = drain_s if drain_s is not None else float(os.environ.get("SFT_GO_DRAIN_S") or 30)
    uvicorn.run(
        "services.app:create_app",
        factory=True,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        http="services.connections:Connection",
        ws="none",
        timeout_graceful_shutdown=int(drain) + 1,
    )


app.command()(WithGroupers(serve, "Serve only these: {names}. Default: all of --state, and what flags name models of."))


def main() -> None:
    """Run the command; print a user's error without a traceback."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    run_and_exit(app, "Error", "Interrupted. Finished shards are kept: run the same command again to go on.")


if __name__ == "__main__":
    main()
