"""List what the store holds, with sizes, and delete a part of it."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.errors import UsageError
from pipeline.store import marker
from pipeline.store.disk import children, writing
from pipeline.store.locks import discard, is_held, owner_of, scratch_folders, seize, this_process

if TYPE_CHECKING:
    from pipeline.store.store import Store

STRANGER_AGE_S = 24 * 3600.0
"""Age from which a scratch folder of another host is deleted. Whether a process on that host still writes to
the folder cannot be checked from here; only the time of the last change is available."""

_KEY = re.compile(r"[0-9a-f]{64}")
_STAGE_AND_KEY = re.compile(r"(?P<stage>.+)-(?P<key>[0-9a-f]{64})(\.lock|\.\d+)?")

Kind = Literal["artefact", "work", "tmp", "damaged", "log", "lock"]


@dataclass(frozen=True)
class StoreItem:
    """An artefact, a log, a lock, or one folder of checkpoints, scratch files or damaged files in the store.

    Attributes:
        kind: Which of these it is.
        name: The path relative to the store's folder.
        stage: The stage it belongs to; empty if it is not known.
        key: The artefact's key; empty if it is not known.
        path: The file or folder.
        size_bytes: The size, for a folder of all files in it.
    """

    kind: Kind
    name: str
    stage: str
    key: str
    path: Path
    size_bytes: int


def usage(store: Store) -> list[StoreItem]:
    """Return everything in the store, with sizes, except the marker and the cached digests."""
    return list(_items(store.root))


def clean(
    store: Store,
    *,
    keep: Collection[tuple[str, str]] | None = None,
    stage: str | None = None,
    everything: bool = False,
    dry_run: bool = False,
) -> list[StoreItem]:
    """Delete artefacts and leftovers.

    Damaged artefacts, logs, unused locks and scratch folders of dead processes are always deleted (with
    `stage`: only those of that stage). Files that a living process writes are never deleted.

    Args:
        store: The store.
        keep: (stage, key) of the artefacts to keep. All others are deleted, with the checkpoints of other
            keys. None deletes no artefact, unless `stage` or `everything` is given.
        stage: Delete only what belongs to this stage; without `keep`, all of it.
        everything: Delete all artefacts and all checkpoints.
        dry_run: Delete nothing.

    Returns:
        What was deleted, or with `dry_run` would be.

    Raises:
        UsageError: The folder is not a store, a run is using it, or part of it is a link to another folder.
    """
    store.check()
    if dry_run and not store.root.exists():
        return []
    if everything:
        keep = None
    if dry_run:
        return [item for item in _items(store.root) if _is_to_delete(item, keep, stage, everything)]
    with marker.exclusive_use(store.root), writing(store.root):
        to_delete = [item for item in _items(store.root) if _is_to_delete(item, keep, stage, everything)]
        for item in to_delete:
            _delete(store, item)
        if stage is None:
            store.sweep()  # lock files without their folders
        for folder in children(store.root / "artefacts"):
            with suppress(OSError):  # not empty
                folder.rmdir()
        store.digests.prune()
    return to_delete


def _items(root: Path) -> Iterator[StoreItem]:
    """Yield only what has a name that the store gives: other files are neither counted nor deleted."""
    for shelf in children(root / "artefacts"):
        for folder in children(shelf):
            if _KEY.fullmatch(folder.name):
                yield _item("artefact", root, folder, shelf.name, folder.name)
    named: tuple[tuple[Kind, str], ...] = (("work", "work"), ("damaged", "damaged"), ("lock", "locks"))
    for kind, folder_name in named:
        for path in children(root / folder_name):
            if match := _STAGE_AND_KEY.fullmatch(path.name):
                yield _item(kind, root, path, match["stage"], match["key"])
    for path in scratch_folders(root / "tmp"):
        if path.exists():  # a lock file without its folder is not counted, like the marker
            yield _item("tmp", root, path)
    for path in children(root / "logs"):
        if path.suffix == ".log":
            yield _item("log", root, path, path.name.rpartition("-")[0])


def _item(kind: Kind, root: Path, path: Path, stage: str = "", key: str = "") -> StoreItem:
    return StoreItem(kind, path.relative_to(root).as_posix(), stage, key, path, _size(path))


def _size(path: Path) -> int:
    if not path.is_dir() or path.is_symlink():
        return path.lstat().st_size
    return sum((Path(here) / name).lstat().st_size for here, _, names in os.walk(path) for name in names)


def _is_to_delete(
    item: StoreItem, keep: Collection[tuple[str, str]] | None, stage: str | None, everything: bool
) -> bool:
    if stage is not None and item.stage != stage:
        return False
    if item.kind == "tmp":
        return _is_abandoned(item.path)
    if item.kind == "lock":
        return not is_held(item.path)
    if item.kind in ("damaged", "log"):
        return True
    if keep is not None:
        return (item.stage, item.key) not in keep
    return everything or stage is not None


def _is_abandoned(scratch: Path) -> bool:
    owner = owner_of(scratch)
    if owner is None:
        return False
    with seize(scratch) as is_free:
        if not is_free:
            return False
    # A file system that many hosts mount may keep their locks from each other: a free lock proves nothing
    # about another host.
    if owner.host == this_process().host:
        return owner.is_gone()
    return time.time() - scratch.stat().st_mtime > STRANGER_AGE_S


def _delete(store: Store, item: StoreItem) -> None:
    root = store.root.resolve()
    if not item.path.parent.resolve().is_relative_to(root):
        raise UsageError(
            "Part of the store is outside its folder",
            where=str(item.path.parent),
            why="it is a link out of the store's folder; kdpipe deletes nothing outside of that folder",
            hint=f"delete by hand what you do not need in {item.path.parent.resolve()}",
        )
    if item.kind == "artefact":
        # Rename it first, so that a `clean` that is killed leaves no half artefact either.
        with store.scratch() as scratch:
            item.path.rename(scratch)
    elif item.kind == "tmp":
        with seize(item.path) as is_free:
            if is_free:
                discard(item.path)
    elif item.path.is_dir() and not item.path.is_symlink():
        shutil.rmtree(item.path)
    else:
        item.path.unlink(missing_ok=True)
