"""`annotate drop`: takes a grouper's columns and its state out of a complete shard directory.

What enters: a directory and the name of a grouper. What leaves: the directory that a run without the grouper would have
made, byte for byte (a document that this grouper alone rejected stays rejected). New shards are written beside the old
ones, which hold until the manifest is replaced (`annotate.run.publishing`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from annotate.run.engines import make_engine
from annotate.run.engines.base import outcomes
from annotate.run.publishing import finish, is_half_published, publish
from annotate.run.workspace import Workspace
from annotate.run.writers import Writer
from common.errors import UserError
from common.manifest import STATE_NAME, Kind, Manifest, ShardInfo, load_manifest
from common.shards import read_table, shard_schema, write_shard
from common.storage import Place, locate


@dataclass(frozen=True, eq=False)
class Whole:
    """A shard that is to lose columns."""

    index: int
    shard: ShardInfo


@dataclass(frozen=True)
class DropColumns:
    """Builds the worker that writes shards again without some columns."""

    workspace: Workspace
    grouper: str
    kinds: dict[str, Kind]  # the columns that stay

    def __call__(self) -> "DropColumns":
        """Return the worker."""
        return self

    def run(self, item: Whole) -> ShardInfo:
        """Write one shard; return its entry for the manifest.

        Raises:
            UserError: the shard is damaged.
        """
        held, file = item.shard, self.workspace.shard_file(item.index)
        schema = shard_schema(self.kinds)
        table = read_table(self.workspace.out / held.file, schema.names, held.sha256).cast(schema)
        counters = {name: values for name, values in held.counters.items() if name != self.grouper}
        written = write_shard(self.workspace.out / file, table, held.supervised_tokens)
        return replace(held, file=file, bytes=written.bytes, sha256=written.sha256, counters=counters)


def drop_grouper(directory: Place, name: str, engine: str = "local") -> Manifest:
    """Drop a grouper; return the new manifest.

    Raises:
        UserError: the directory does not hold it, holds nothing else, is damaged, or is being written by another run.
    """
    out = locate(directory)
    out = locate(out.local.absolute()) if out.local is not None else out
    load_manifest(out)  # a directory that is none is not made one by the lock
    with Writer(out):
        manifest = load_manifest(out)
        if is_half_published(manifest):
            manifest = finish(out)
        held = [grouper.name for grouper in manifest.groupers]
        if name not in held:
            raise UserError(f"--grouper {name}: {out} holds {', '.join(held)}. Name one of them.")
        if len(held) == 1:
            raise UserError(f"--grouper {name}: {out} holds nothing else. Delete the directory instead.")
        left = replace(manifest, groupers=[grouper for grouper in manifest.groupers if grouper.name != name])
        workspace = Workspace(out, beside=True)
        if workspace.plan.is_file():
            raise UserError(f"{out}: an unfinished run has left its work there. Run its command again, then drop.")
        workspace.work.delete_tree()  # of a drop that was killed
        shards: dict[int, ShardInfo] = {}
        with make_engine(engine, None, None, 1.0) as runner:
            worker = DropColumns(workspace, name, left.columns)
            for item, shard in outcomes(runner, worker, _shards(manifest)):
                shards[item.index] = shard
        files = [file for file in manifest.files if not _is_state_of(file.file, name)]
        left = replace(left, shards=[shards[index] for index in sorted(shards)])
        done = publish(workspace, left, replace(manifest, files=files))
        for file in manifest.files:
            if _is_state_of(file.file, name):
                (out / file.file).delete()
        return done


def _shards(manifest: Manifest) -> Iterator[Whole]:
    for index, shard in enumerate(manifest.shards):
        yield Whole(index, shard)


def _is_state_of(file: str, grouper: str) -> bool:
    return file.startswith(f"{STATE_NAME}/") and file.removeprefix(f"{STATE_NAME}/").split(".")[0] == grouper
