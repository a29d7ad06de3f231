"""File-system calls of the store: list, flush, and turn a refused write into an error with a remedy."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import KdpipeError, StageError, UsageError

_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
FULL = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers of the file system when no space is left."""


def children(folder: Path) -> list[Path]:
    """List the entries of a folder, sorted; none if the folder does not exist."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def flush(path: Path) -> None:
    """Write a file's content, or a folder's list of names, from memory to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_tree(folder: Path) -> None:
    """Write everything in a folder, at any depth, from memory to the disk (fsync)."""
    for here, _, names in os.walk(folder):
        for name in names:
            flush(Path(here) / name)
        flush(Path(here))


@contextmanager
def writing(root: Path) -> Iterator[None]:
    """Turn an OSError in the block into an error with a remedy.

    Args:
        root: The store's folder.

    Raises:
        UsageError: The user must name another folder.
        StageError: The disk is full or cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise refusal(error, root) from error


def refusal(error: OSError, root: Path) -> KdpipeError:
    """Return a UsageError if the user must name another folder, else a StageError."""
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
