"""The annotation run: source -> documents -> tokens -> scores -> shards -> manifest.

What enters: `Settings`. What leaves: a complete shard directory, and a `Summary`. This module drives the two stages of
`annotate.run.stages` on any engine; it knows neither Ray nor the command line.
"""

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from rich.console import Console

from annotate.groupers import grouper_class
from annotate.groupers.base import Grouper, GrouperOptions
from annotate.records.conversations import detect_format
from annotate.records.readers import RawRecord
from annotate.records.sources import SAMPLE_TOKENIZER, Source, document_id, find_source, record_hash
from annotate.run.engines import make_engine
from annotate.run.engines.base import Engine
from annotate.run.progress import RunProgress
from annotate.run.settings import Settings, check_settings
from annotate.run.stages import RecordShard, ScoreWorker, TokenizedShard, TokenizeWorker
from annotate.run.workspace import GrouperPlan, ShardRecord, Workspace, content_identity
from annotate.tokens.target import check_max_length, load_target
from annotate.tokens.templates import default_template, make_template
from common.errors import UserError
from common.manifest import REJECTS_NAME, Counts, GrouperInfo, Manifest, SourceInfo, TokenizerInfo, load_manifest

DEFAULT_TOKENIZER = "meta-llama/Llama-3.2-3B"  # the paper's
RECORDS_TO_DETECT = 64


@dataclass(frozen=True)
class Summary:
    """What a run did."""

    manifest: Manifest
    out: Path
    already_complete: bool
    shards_made: int
    tokens_made: int
    seconds: float
    engine: str


def run(settings: Settings, console: Console) -> Summary:
    """Annotate a source.

    Raises:
        UserError: wrong settings or input; what was finished is kept, and the same settings go on from there.
    """
    started = time.monotonic()
    check_settings(settings)
    source = find_source(settings.data, settings.data_revision)
    if source.note:
        console.print(source.note, highlight=False)
    format_name = _format(settings, source)
    template = settings.template or default_template(format_name)
    name = settings.tokenizer or (str(SAMPLE_TOKENIZER) if settings.data == "sample" else DEFAULT_TOKENIZER)
    name = str(Path(name).absolute()) if Path(name).is_dir() else name
    target = load_target(name, settings.tokenizer_revision)
    make_template(template, target.tokenizer)
    check_max_length(settings.max_length, target)
    content_hash = source.content_hash()

    with make_engine(settings.engine, settings.address, settings.workers, settings.gpus_per_worker) as engine:
        options = _options(settings, name, target.fingerprint, engine)
        requested = {key: grouper_class(key).from_options(options) for key in settings.groupers}
        workspace = Workspace(settings.out)
        identity = content_identity(
            content_hash,
            format_name,
            settings.limit,
            template,
            target.fingerprint,
            settings.max_length,
            settings.rows_per_shard,
        )
        has_work = workspace.open(identity, [GrouperPlan(k, g.parameters, g.columns) for k, g in requested.items()])
        for note in workspace.notes:
            console.print(note, highlight=False)
        if not has_work:
            seconds = time.monotonic() - started
            return Summary(load_manifest(settings.out), settings.out, True, 0, 0, seconds, engine.description)
        groupers = {
            plan.name: requested.get(plan.name) or grouper_class(plan.name).from_parameters(plan.parameters, options)
            for plan in workspace.groupers
        }
        tokenize = TokenizeWorker(
            out=settings.out.absolute(),
            tokenizer=name,
            revision=settings.tokenizer_revision,
            template=template,
            format_name=format_name,
            max_length=settings.max_length,
            with_spans=any(grouper.needs_spans for grouper in groupers.values()),
            fits=tuple(g for g in groupers.values() if g.needs_fit and not g.is_fitted(workspace.state)),
        )
        job = _Job(settings, source, workspace, groupers, engine, console)
        with ThreadPoolExecutor(max_workers=1) as beside:  # a large vocabulary takes a while to write
            saved = beside.submit(target.tokenizer.save_pretrained, workspace.tokenizer)
            records = job.annotate(tokenize)
            saved.result()
        info = SourceInfo(settings.data, source.location, source.revision, content_hash, format_name, settings.limit)
        tokenizer_info = TokenizerInfo(name, settings.tokenizer_revision, target.fingerprint)
        manifest = _manifest(settings, info, template, tokenizer_info, groupers, records)
        workspace.write_rejects([reject for record in records for reject in record.rejects])
        if manifest.counts.documents == 0:
            rejects = manifest.counts.rejects
            reasons = ", ".join(f"{count} {reason}" for reason, count in rejects.items())
            raise UserError(
                f"--data {settings.data}: all {sum(rejects.values())} records were rejected ({reasons}); "
                f"{settings.out / REJECTS_NAME} says why, row by row. Is --format {format_name} right?"
            )
        workspace.complete(manifest)
    seconds = time.monotonic() - started
    return Summary(manifest, settings.out, False, job.shards_made, job.tokens_made, seconds, engine.description)


def _format(settings: Settings, source: Source) -> str:
    """Return the record format, detected unless it was named."""
    first = [record.value for record in source.records(min(RECORDS_TO_DETECT, settings.limit or RECORDS_TO_DETECT))]
    if not first:
        raise UserError(f"{source.location}: expected records, found none.")
    return settings.format_name or detect_format(first, source.location)


def _options(settings: Settings, tokenizer: str, fingerprint: str, engine: Engine) -> GrouperOptions:
    """Complete the groupers' options with what only the run knows."""
    uses_model = any(grouper_class(name).uses_model for name in settings.groupers)
    device = settings.options.device or (engine.device if uses_model else None)
    return replace(
        settings.options,
        tokenizer=tokenizer,
        tokenizer_fingerprint=fingerprint,
        max_length=settings.max_length,
        device=device,
    )


class _Job:
    """The work of one run."""

    def __init__(
        self,
        settings: Settings,
        source: Source,
        workspace: Workspace,
        groupers: dict[str, Grouper],
        engine: Engine,
        console: Console,
    ):
        self.settings = settings
        self.source = source
        self.workspace = workspace
        self.groupers = groupers
        self.engine = engine
        self.console = console
        self.shards_made = 0
        self.tokens_made = 0
        self.records_read = 0
        self.counts: dict[str, dict[str, np.ndarray]] = {}  # summed over shards, by grouper

    def annotate(self, tokenize: TokenizeWorker) -> list[ShardRecord]:
        """Run the stages over the shards that need them; return the records of all shards, in order."""
        done = self._done()
        # Fits count the whole corpus, so every shard is tokenized; otherwise only those that are to be made.
        skip = set() if tokenize.fits else set(done)
        score = ScoreWorker(self.settings.out.absolute(), tuple(self.groupers.values()))
        uses_model = any(grouper.uses_model for grouper in self.groupers.values())
        with RunProgress(self.console) as progress:
            tokenized = self._tokenized(tokenize, skip, progress)
            if tokenize.fits or not (uses_model and self.engine.device == "cuda"):
                # A fit needs the whole corpus; and on CPUs both stages want the same cores.
                tokenized = iter(sorted(tokenized, key=lambda shard: shard.index))
                for grouper in tokenize.fits:
                    fitted = copy(grouper)  # workers get the unfitted one and load the state
                    fitted.fit(self.counts.pop(grouper.name))
                    fitted.save(self.workspace.state)
            pending = (shard for shard in tokenized if shard.index not in done)
            progress.start("score")
            for record in self.engine.map(score, pending, uses_model=uses_model):
                done[int(record.shard.file.removeprefix("part-").removesuffix(".parquet"))] = record
                self.shards_made += 1
                self.tokens_made += record.shard.tokens
                progress.advance(
                    "score", record.shard.source_rows, record.shard.rows, record.shard.tokens, 0, self._total()
                )
        records = [done[index] for index in sorted(done)]
        assert sorted(done) == list(range(len(done))), "a shard is missing"
        return records

    def _done(self) -> dict[int, ShardRecord]:
        """Return the finished shards that hold every column of the plan."""
        wanted = {name for grouper in self.groupers.values() for name in grouper.columns}
        return {i: record for i, record in self.workspace.finished().items() if wanted <= set(record.columns)}

    def _tokenized(self, tokenize: TokenizeWorker, skip: set[int], progress: RunProgress) -> Iterator[TokenizedShard]:
        progress.start("tokenize")
        shards = (shard for shard in self._record_shards() if shard.index not in skip)
        for shard in self.engine.map(tokenize, shards):
            for grouper, counts in shard.counts.items():
                total = self.counts.setdefault(grouper, {})
                for name, values in counts.items():
                    total[name] = _add(total[name], values) if name in total else values
            shard.counts.clear()  # a vector as long as the vocabulary: not to be kept for every shard
            progress.advance(
                "tokenize", shard.source_rows, shard.documents, shard.tokens, len(shard.rejects), self._total()
            )
            yield shard

    def _total(self) -> int | None:
        """Return the number of source records, estimated from how far the source was read."""
        fraction = self.source.position.fraction
        return round(self.records_read / fraction) if fraction else None

    def _record_shards(self) -> Iterator[RecordShard]:
        """Cut the source into shards and give every record its id."""
        seen: Counter[str] = Counter()
        stream: Iterator[RawRecord] = self.source.records(self.settings.limit)
        for index in range(1 << 62):
            records = list(islice(stream, self.settings.rows_per_shard))
            if not records:
                return
            self.records_read += len(records)
            ids = []
            for record in records:
                content = record_hash(record.value)
                ids.append(document_id(content, seen[content]))
                seen[content] += 1
            yield RecordShard(index, records, ids)


def _add(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Add two count vectors; the shorter one counts as padded with zeros."""
    longer, shorter = (left, right) if left.size >= right.size else (right, left)
    total = longer.copy()
    total[: shorter.size] += shorter
    return total


def _manifest(
    settings: Settings,
    source: SourceInfo,
    template: str,
    tokenizer: TokenizerInfo,
    groupers: dict[str, Grouper],
    records: list[ShardRecord],
) -> Manifest:
    """Put the manifest together from the records of the shards."""
    shards = [record.shard for record in records]
    reasons = Counter(reject.reason for record in records for reject in record.rejects)
    infos = []
    for name, grouper in groupers.items():
        counters: Counter[str] = Counter()
        for shard in shards:
            counters.update(shard.counters.get(name, {}))
        infos.append(GrouperInfo(name, grouper.parameters, grouper.columns, grouper.report(counters)))
    return Manifest(
        source=source,
        template=template,
        tokenizer=tokenizer,
        max_length=settings.max_length,
        rows_per_shard=settings.rows_per_shard,
        groupers=infos,
        counts=Counts(
            documents=sum(shard.rows for shard in shards),
            tokens=sum(shard.tokens for shard in shards),
            supervised_tokens=sum(shard.supervised_tokens for shard in shards),
            truncated=sum(shard.truncated for shard in shards),
            rejects=dict(sorted(reasons.items())),
        ),
        shards=shards,
    )
