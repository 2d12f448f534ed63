"""What the service serves: targets (tokenizer, template) and score columns, each with the worker that computes it.

What enters: `Settings`. What leaves: a `Catalog` whose workers are not started yet. Everything that can be wrong is
found here, before the server listens; only the models' weights are loaded later, by the workers.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from annotate.groupers import grouper_class
from annotate.groupers.base import Grouper, GrouperOptions
from annotate.run.flags import registered_flags
from annotate.tokens.target import TargetTokenizer, check_max_length
from annotate.views.inspection import short_name
from common.downloads import local_copy
from common.errors import UserError, raise_together
from common.manifest import STATE_NAME, TOKENIZER_NAME, Kind, Manifest, load_manifest
from common.storage import Location, locate
from services.batching import Worker
from services.errors import ApiError
from services.inputs import Target
from services.metrics import Metrics
from services.settings import Settings, split_name

MODEL = "_model"  # ends the name of a flag that names one
PROBE = "A first sentence, so that the model has run once. And 1 + 1 = 2."


@dataclass(frozen=True)
class Column:
    """A score column of one target."""

    name: str
    kind: Kind
    target: Target
    worker: Worker


@dataclass
class Catalog:
    """Everything that a request can name."""

    targets: dict[str, Target] = field(default_factory=dict)
    columns: list[Column] = field(default_factory=list)
    workers: list[Worker] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # for the log

    def find(self, grouper: str | None, tokenizer: str | None) -> Column:
        """Return the column that a request asks for.

        Raises:
            ApiError: `invalid_input`, saying what there is.
        """
        if tokenizer is not None and tokenizer not in self.targets:
            raise ApiError("invalid_input", f"tokenizer: expected one of {', '.join(self.targets)}.")
        columns = [column for column in self.columns if tokenizer in (None, column.target.name)]
        names = list(dict.fromkeys(column.name for column in columns))
        if grouper is None and len(names) > 1:
            raise ApiError("invalid_input", f"grouper: name one of {', '.join(names)}.")
        found = next((column for column in columns if grouper in (None, column.name)), None)
        if found is None:
            with_tokenizer = f" with the tokenizer {tokenizer}" if tokenizer else ""
            raise ApiError("invalid_input", f"grouper: expected one of {', '.join(names)}{with_tokenizer}.")
        return found

    def is_ready(self) -> bool:
        """Tell whether every worker answers."""
        return all(worker.state == "ready" for worker in self.workers)


def build_catalog(settings: Settings, metrics: Metrics) -> Catalog:
    """Load tokenizers and fitted state, find models.

    Raises:
        UserError: something is missing or does not fit together.
    """
    catalog = Catalog()
    shared: dict[str, Worker] = {}  # models do not depend on the target: one copy for all
    refused: dict[str, str] = {}
    for target, directory, manifest in _targets(settings):
        if target.name in catalog.targets:
            raise UserError(
                f"two targets have the name {target.name!r}. Name the shard directories: --state a=DIR --state b=DIR."
            )
        catalog.targets[target.name] = target
        options = GrouperOptions(
            tokenizer=target.name,
            tokenizer_fingerprint=target.tokenizer.fingerprint,
            max_length=target.max_length,
            flags=settings.flags,
        )
        for name in _wanted(settings, manifest):
            try:
                grouper = _set_up(name, options, directory, manifest)
            except UserError as error:
                if len(settings.state) > 1 and _named_models(name, settings.flags):
                    refused.setdefault(name, str(error))
                    catalog.notes.append(f"{name} is not served for {target.name}: {error}")
                    continue  # a reference model belongs to one tokenizer; another target may be the one
                raise
            key = json.dumps([name, grouper.parameters]) if grouper.uses_model else f"{target.name}/{name}"
            if key not in shared:
                label = name if len(settings.state) < 2 or grouper.uses_model else f"{target.name}/{name}"
                taken = sum(worker.name.split("#")[0] == label for worker in catalog.workers)
                shared[key] = _worker(f"{label}#{taken + 1}" if taken else label, grouper, target, settings, metrics)
                catalog.workers.append(shared[key])
            for column, kind in grouper.columns.items():
                catalog.columns.append(Column(column, kind, target, shared[key]))
    served = {worker.grouper.name for worker in catalog.workers}
    raise_together([problem for name, problem in refused.items() if name not in served])
    read = {item.name for name in served for item in fields(grouper_class(name).Flags)}
    raise_together(
        [
            f"--{name.replace('_', '-')} is read by none of the groupers that are served: {', '.join(sorted(served))}. "
            "Drop it, or name a grouper that reads it with --grouper."
            for name in settings.flags
            if served and name not in read
        ]
    )
    if not catalog.columns:
        raise UserError("no grouper to serve: name one with --grouper, or give a shard directory that holds one.")
    return catalog


def _targets(settings: Settings) -> list[tuple[Target, Location | None, Manifest | None]]:
    """Return each target, with the shard directory that it comes from."""
    if not settings.state:
        assert settings.tokenizer is not None
        tokenizer = TargetTokenizer(settings.tokenizer)
        check_max_length(settings.max_length, tokenizer)
        name = short_name(settings.tokenizer)
        return [(Target(name, tokenizer, settings.template, settings.max_length), None, None)]
    found: list[tuple[Target, Location | None, Manifest | None]] = []
    for state in settings.state:
        given, text = split_name(state)
        directory = locate(text)
        manifest = load_manifest(directory)
        tokenizer = TargetTokenizer(str(directory / TOKENIZER_NAME))
        if tokenizer.fingerprint != manifest.tokenizer.fingerprint:
            raise UserError(
                f"{directory / TOKENIZER_NAME}: expected the tokenizer that the shards were made with (fingerprint "
                f"{manifest.tokenizer.fingerprint[:12]}), found another ({tokenizer.fingerprint[:12]}). Annotate again."
            )
        name = given or short_name(manifest.tokenizer.name)
        found.append((Target(name, tokenizer, manifest.template, manifest.max_length), directory, manifest))
    return found


def _wanted(settings: Settings, manifest: Manifest | None) -> list[str]:
    """Return the names of the groupers to serve for a target."""
    if settings.groupers:
        return list(dict.fromkeys(settings.groupers))
    held = [grouper.name for grouper in manifest.groupers] if manifest else []
    added: list[str] = []
    for flag in settings.flags:  # a model that none of those reads is named for a grouper that is not held
        if flag.endswith(MODEL) and not any(flag in _named_models(name, settings.flags) for name in (*held, *added)):
            added.append(registered_flags()[flag][1][0])
    return list(dict.fromkeys([*held, *added]))


def _named_models(name: str, flags: Mapping[str, Any]) -> list[str]:
    """Return the flags of a grouper that were given, and name models: it is set up from the flags then."""
    return [item.name for item in fields(grouper_class(name).Flags) if item.name.endswith(MODEL) and item.name in flags]


def _set_up(name: str, options: GrouperOptions, directory: Location | None, manifest: Manifest | None) -> Grouper:
    """Return a grouper with what it fitted; models are not loaded yet."""
    kind = grouper_class(name)
    held = next((info for info in manifest.groupers if info.name == name), None) if manifest else None
    if _named_models(name, options.flags):
        return kind.from_options(options)
    if held is not None and directory is not None:
        raise_together(
            [
                f"--{flag.replace('_', '-')} {value}: {directory} has {name} with {held.parameters[flag]}, and that is "
                "what is served. Drop the flag."
                for flag, value in options.flags.items()
                if flag in {item.name for item in fields(kind.Flags)} and held.parameters.get(flag, value) != value
            ]
        )
        try:
            grouper = kind.from_parameters(held.parameters, options)
        except UserError as error:
            raise UserError(
                f"{directory}: its grouper {name} cannot be set up again: {error} "
                "Or name the groupers to serve with --grouper."
            ) from error
        if kind.needs_fit:
            state = directory / STATE_NAME
            path = state.local or local_copy(str(state))
            if not grouper.is_fitted(path):
                raise UserError(f"{state}: what {name} fitted is missing. Annotate again.")
            grouper.load(path)
        return grouper
    if kind.needs_fit:
        where = f"{directory} does not hold it" if directory else "there is no --state"
        raise UserError(
            f"--grouper {name}: it needs a shard directory that it was fitted for, and {where}. "
            f"Make one with `annotate run --grouper {name} …`."
        )
    return kind.from_options(options)


def _worker(name: str, grouper: Grouper, target: Target, settings: Settings, metrics: Metrics) -> Worker:
    return Worker(
        name,
        grouper,
        probe=target.probe(PROBE),
        metrics=metrics,
        max_queue=settings.max_queue,
        max_batch_tokens=settings.max_batch_tokens,
        batch_window_s=settings.batch_window_ms / 1000 if settings.max_batch_tokens > 1 else 0.0,
    )


def public_parameters(parameters: dict[str, Any]) -> dict[str, Any]:
    """Return a grouper's parameters without the directories of this machine."""
    return {
        key: short_name(value) if key.endswith(MODEL) and isinstance(value, str) else value
        for key, value in parameters.items()
    }
