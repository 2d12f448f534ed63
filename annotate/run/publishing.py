"""The last step of a run: its files become the directory's, in one step, at the moment the manifest is replaced.

What enters: a manifest, and files in `.work/next/` where the directory was complete before. What leaves: a complete
directory. For a directory that was complete, in this order:

1. the new manifest is written, and names the new files where they are, in `.work/next/`: from here on it holds;
2. each of them is linked or copied over the file whose place it takes;
3. the manifest is written again, with the files' own names, and `.work/` is deleted.

Whoever reads the manifest at any moment finds every file that it names, whole. A run that is killed in between leaves a
complete directory, and the next one goes on (`finish`).
"""

import dataclasses
import os
import secrets
from contextlib import suppress
from typing import TypeVar

from annotate.run.workspace import Workspace
from common.manifest import WORK_NAME, FileInfo, Manifest, ShardInfo, describe_files, load_manifest
from common.storage import Location, is_temporary

NEXT = f"{WORK_NAME}/next/"
Entry = TypeVar("Entry", ShardInfo, FileInfo)


def publish(workspace: Workspace, manifest: Manifest, before: Manifest | None) -> Manifest:
    """Make the directory complete; return the manifest as it is at the end.

    Args:
        manifest: `files` is filled in here.
        before: the manifest that holds until then.
    """
    out = workspace.out
    files = {file.file: file for file in (before.files if before else []) or describe_files(out)}
    for file in describe_files(workspace.next) if before else ():
        files[file.file] = dataclasses.replace(file, file=NEXT + file.file)
    manifest = dataclasses.replace(manifest, files=[files[name] for name in sorted(files)])
    manifest.save(out)
    if before is not None:
        return finish(out)
    workspace.work.delete_tree()
    return manifest


def is_half_published(manifest: Manifest) -> bool:
    """Tell whether the manifest names files where they wait."""
    names = [shard.file for shard in manifest.shards] + [file.file for file in manifest.files]
    return any(name.startswith(NEXT) for name in names)


def finish(out: Location) -> Manifest:
    """Do steps 2 and 3 for the manifest that is there."""
    manifest = load_manifest(out)

    def moved(entry: Entry) -> Entry:
        if not entry.file.startswith(NEXT):
            return entry
        name = entry.file.removeprefix(NEXT)
        _take_place(out / entry.file, out / name)
        return dataclasses.replace(entry, file=name)

    files = [moved(entry) for entry in manifest.files]
    shards = [moved(entry) for entry in manifest.shards]
    manifest = dataclasses.replace(manifest, shards=shards, files=files)
    manifest.save(out)
    (out / WORK_NAME).delete_tree()
    return manifest


def _take_place(source: Location, target: Location) -> None:
    """Let `target` be the same file as `source`, which stays."""
    if source.local is None or target.local is None:
        source.copy_to(target)
        return
    target.local.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.local.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    try:
        os.link(source.local, temporary)
        os.replace(temporary, target.local)
    except OSError:  # a file system without hard links
        source.copy_to(target)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def clean(out: Location) -> None:
    """Delete temporary files that dead writers have left anywhere in the directory."""
    for name in out.files():
        if is_temporary(name.rpartition("/")[2]):
            (out / name).delete()
