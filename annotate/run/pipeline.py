"""The annotation run: source -> plan -> tokens -> reduction -> scores -> shards -> manifest.

What enters: `Settings`. What leaves: a complete shard directory, and a `Summary`. This module decides what is to be
done, from the settings and from what the directory holds; `annotate.run.job` does it, on any engine.
"""

import dataclasses
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from annotate.groupers import grouper_class
from annotate.groupers.base import Grouper, GrouperOptions
from annotate.run.appending import Task, check_mode, check_unfinished, choose_task, work_of
from annotate.run.engines import make_engine
from annotate.run.engines.base import Engine
from annotate.run.inputs import Inputs, differences, from_manifest, from_source, refuse_changes, refuse_source_flags
from annotate.run.job import Job, Outcome
from annotate.run.ledger import Ledger
from annotate.run.planning import content_hash
from annotate.run.publishing import clean, finish, is_half_published
from annotate.run.settings import Settings, check_settings
from annotate.run.workspace import Workspace
from annotate.run.writers import WRITER_NAME, Writer
from common.errors import UserError
from common.manifest import (
    COPY_NAME,
    MANIFEST_NAME,
    REJECTS_NAME,
    TOKENIZER_NAME,
    WORK_NAME,
    GrouperInfo,
    Manifest,
    read_manifest,
    render,
)
from common.storage import Location, locate


@dataclass(frozen=True)
class Summary:
    """What a run did."""

    manifest: Manifest
    out: Location
    already_complete: bool
    shards_made: int
    tokens_made: int
    seconds: float
    engine: str


@dataclass(frozen=True)
class GrouperPlan:
    """A grouper of the plan, in the form that the manifest will have."""

    name: str
    parameters: dict[str, Any]
    columns: dict[str, Any]


def run(settings: Settings, console: Console) -> Summary:
    """Annotate a source, or add columns to what a directory holds.

    Raises:
        UserError: wrong settings or input; what was finished is kept, and the same settings go on from there.
    """
    started = time.monotonic()
    check_settings(settings)
    named = locate(settings.out)
    out = named if named.local is None else locate(named.local.absolute())  # workers may be in another directory
    with (
        Writer(out, lambda sentence: console.print(sentence, highlight=False)),
        ThreadPoolExecutor(max_workers=1) as beside,
    ):
        manifest, plan = _held(out)
        check_mode(settings, manifest)
        held = from_manifest(manifest).identity() if manifest else (plan or {}).get("settings", {})
        if settings.append and settings.tokenizer is None:
            settings = dataclasses.replace(settings, tokenizer=str(out / TOKENIZER_NAME))
        if settings.data is None and manifest is not None:
            refuse_source_flags(settings, manifest)
            loading = beside.submit(from_manifest, manifest)
        else:
            loading = beside.submit(
                from_source, settings, held, out / WORK_NAME / "unpacked"
            )  # while the engine starts
        with make_engine(settings.engine, settings.address, settings.workers, settings.gpus_per_worker) as engine:
            inputs = loading.result()
            if inputs.source is not None:
                if inputs.source.note:
                    console.print(inputs.source.note, highlight=False)
                inputs = inputs.with_content(content_hash(inputs.source, engine))
            outcome = _annotate(settings, console, out, engine, inputs, manifest, plan, beside)
            description = engine.description
    seconds = time.monotonic() - started
    return Summary(
        outcome.manifest,
        named,
        outcome.already_complete,
        outcome.shards_made,
        outcome.tokens_made,
        seconds,
        description,
    )


def _held(out: Location) -> tuple[Manifest | None, dict[str, Any] | None]:
    """Return what the directory holds: a manifest, and the plan of an unfinished run.

    Raises:
        UserError: it holds something else.
    """
    names = [name for name in out.names() if name != WRITER_NAME]
    clean(out)
    if MANIFEST_NAME in names or any(name.startswith("manifest.") for name in names):
        found = read_manifest(out)
        manifest = found.manifest
        copy = (out / COPY_NAME).read_bytes() if COPY_NAME in names else b""
        differs = manifest.schema_version > 1 and copy != render(manifest)  # a kill between the two writes
        if found.note is not None or differs:
            manifest.save(out)
        if is_half_published(manifest):
            manifest = finish(out)
    else:
        manifest = None
    plan = None
    if WORK_NAME in names:
        try:
            plan = (out / WORK_NAME / "plan.json").read_json()
        except FileNotFoundError:
            (out / WORK_NAME).delete_tree()
    if manifest is None and plan is None:
        # Rejects alone are left by a run that had no document: another may follow.
        foreign = [name for name in names if name not in (WORK_NAME, REJECTS_NAME)]
        if foreign:
            raise UserError(
                f"--out {out}: expected a new, empty or unfinished shard directory, found {foreign[0]!r} and "
                "no manifest. Give another directory."
            )
    return manifest, plan


def _annotate(
    settings: Settings,
    console: Console,
    out: Location,
    engine: Engine,
    inputs: Inputs,
    manifest: Manifest | None,
    plan: dict[str, Any] | None,
    beside: ThreadPoolExecutor,
) -> Outcome:
    """Compare with what is there, make the plan, do it."""
    task = Task()
    if manifest is not None:
        task, inputs, notes = choose_task(settings, inputs, manifest)
        for note in notes:
            console.print(note, highlight=False)
    elif plan is not None:
        refuse_changes(out, plan["settings"], inputs.identity())
    there = [GrouperPlan(g.name, g.parameters, g.columns) for g in manifest.groupers] if manifest else []
    at_work = settings.groupers or tuple(grouper.name for grouper in there)
    check_settings(dataclasses.replace(settings, groupers=at_work))
    uses_model = any(grouper_class(name).uses_model for name in at_work)
    engine.check(uses_model)
    options = _options(settings, inputs, engine, uses_model)
    requested = {name: grouper_class(name).from_options(options) for name in settings.groupers}
    if manifest is None and plan is not None:
        there = [GrouperPlan(**grouper) for grouper in plan["groupers"]]
    merged = _merge(out, there, [GrouperPlan(n, g.parameters, g.columns) for n, g in requested.items()])

    def build(name: str) -> Grouper:
        """Return a grouper of the plan; one that is held already is built only when it is needed."""
        if name in requested:
            return requested[name]
        parameters = next(grouper.parameters for grouper in merged if grouper.name == name)
        return grouper_class(name).from_parameters(parameters, options)

    workspace = Workspace(out, beside=manifest is not None)
    work = work_of(manifest, task, inputs)
    if manifest is not None and plan is not None and not ("work" in plan and check_unfinished(out, plan["work"], work)):
        workspace.forget()
    ledger = Ledger(workspace, manifest, {grouper.name: grouper.columns for grouper in merged}, task)
    job = Job(workspace, inputs, engine, console, ledger, build)
    if job.is_complete():
        workspace.work.delete_tree()
        assert manifest is not None
        return Outcome(manifest, True, 0, 0)
    if plan is not None and manifest is None:
        console.print(f"{out}: going on with an unfinished run.", highlight=False)
    groupers = [dataclasses.asdict(grouper) for grouper in merged]
    workspace.plan.write_json({"settings": inputs.identity(), "groupers": groupers, "work": work})
    saved = beside.submit(_save_tokenizer, inputs, out) if manifest is None else None
    if saved is not None and out.local is None:
        saved.result()  # workers elsewhere may read it from there
    infos = {
        grouper.name: GrouperInfo(
            grouper.name, grouper.parameters, grouper.columns, fitted_shards=ledger.fitted_shards(grouper.name)
        )
        for grouper in merged
    }
    return job.do(infos, saved.result if saved is not None else lambda: None)


def _save_tokenizer(inputs: Inputs, out: Location) -> None:
    """Write the target tokenizer's files; a large vocabulary takes a while."""
    assert inputs.target is not None
    with tempfile.TemporaryDirectory(prefix="sft-go-") as folder:
        inputs.target.tokenizer.save_pretrained(folder)
        for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            (out / TOKENIZER_NAME / path.relative_to(folder).as_posix()).write_bytes(path.read_bytes())


def _options(settings: Settings, inputs: Inputs, engine: Engine, uses_model: bool) -> GrouperOptions:
    """Complete the groupers' options with what only the run knows.

    Raises:
        UserError: a GPU is named by its number where Ray deals them out: a worker sees its own alone, as number 0.
    """
    asked = settings.options.flags.get("device")
    if engine.name == "ray" and (asked or "").partition(":")[2]:
        raise UserError(
            f"--device {asked}: Ray gives each worker a GPU of its own, whatever its number here. Use --device cuda "
            "(--gpus-per-worker says how much of one), or --engine local for that very GPU."
        )
    return dataclasses.replace(
        settings.options,
        tokenizer=inputs.tokenizer.name,
        tokenizer_fingerprint=inputs.tokenizer.fingerprint,
        max_length=inputs.max_length,
        flags={**settings.options.flags, "device": asked or (engine.device if uses_model else None)},
    )


def _merge(out: Location, held: list[GrouperPlan], requested: list[GrouperPlan]) -> list[GrouperPlan]:
    """Add the requested groupers to those that are there."""
    by_name = {grouper.name: grouper for grouper in held}
    for grouper in requested:
        before = by_name.setdefault(grouper.name, grouper)
        if before != grouper:
            changed = differences(before.parameters, grouper.parameters) or "other columns"
            raise UserError(
                f"--out {out} holds {grouper.name} with other settings: {changed}. "
                "Give the same settings, or another directory."
            )
    return list(by_name.values())
