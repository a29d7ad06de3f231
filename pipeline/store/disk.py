"""What the store asks of the file system: flushing, listing, and saying why the disk refuses."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import KdpipeError, StageError, UsageError

_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
FULL = (errno.ENOSPC, errno.EDQUOT)
"""What the file system says when there is no room left."""


def children(folder: Path) -> list[Path]:
    """What lies directly in a folder, sorted; nothing if it is not there."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def flush(path: Path) -> None:
    """Sees to it that a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_tree(folder: Path) -> None:
    for here, _, names in os.walk(folder):
        for name in names:
            flush(Path(here) / name)
        flush(Path(here))


@contextmanager
def writing(root: Path) -> Iterator[None]:
    """Turns the file system's refusals into errors with a remedy; `root` is the store's."""
    try:
        yield
    except OSError as error:
        raise refusal(error, root) from error


def refusal(error: OSError, root: Path) -> KdpipeError:
    """A UsageError where another folder must be named, else a StageError."""
    where = str(error.filename2 or error.filename or root)
    why = error.strerror or str(error)
    if error.errno in _NOT_ALLOWED:
        return UsageError(
            "The store cannot be used",
            where=where,
            why=why,
            hint="name a folder that you may write to with --store",
        )
    if error.errno in FULL:
        return StageError(
            "The disk is full", where=where, why=why, hint="free some space (see: kdpipe clean --help)"
        )
    return StageError(
        "The store cannot be written", where=where, why=why, hint="check the disk, then run again"
    )
