"""The file that marks a folder as a store; its lock keeps `clean` and the runs apart."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline import __version__
from pipeline.errors import UsageError
from pipeline.store.disk import flush, refusal

SCHEMA_VERSION = 1
MARKER = "store.json"
FOLDERS = ("artefacts", "work", "tmp", "locks", "damaged")
"""A store's folders, except `logs`: the log of a crash may be written before there is a store."""


def check(root: Path) -> None:
    """Check that the folder is a store that this kdpipe can use, or can become one.

    Raises:
        UsageError: It cannot be used.
    """
    if not root.exists():
        return
    if not root.is_dir():
        raise UsageError("The store is not a folder", where=str(root), hint="name a folder with --store")
    marker = root / MARKER
    try:
        schema = json.loads(marker.read_bytes())["schema_version"]
    except FileNotFoundError:
        strangers = [name for name in FOLDERS if (root / name).exists()]
        if not strangers:
            return
        raise UsageError(
            "The folder is not a kdpipe store",
            where=str(root),
            why=f"it has no {MARKER}, but a folder {strangers[0]!r} that a store would write into",
            hint="name an empty or a new folder with --store",
        ) from None
    except (ValueError, KeyError, TypeError):
        raise UsageError(
            "The store's marker file cannot be read",
            where=str(marker),
            why="it is not JSON with a schema_version",
            hint=f"if this is a kdpipe store: echo '{{\"schema_version\": {SCHEMA_VERSION}}}' > '{marker}'",
        ) from None
    except OSError as error:
        raise refusal(error, root) from error
    if schema != SCHEMA_VERSION:
        raise UsageError(
            "The store was written by another version of kdpipe",
            where=str(marker),
            why=f"its schema_version is {schema}; kdpipe {__version__} reads {SCHEMA_VERSION}",
            hint="use that version of kdpipe, or name another store with --store",
        )


def write(root: Path) -> None:
    """Mark a folder as a store, by one atomic rename.

    Raises:
        OSError: The folder cannot be written.
    """
    # A random name, not the process id: a process in another container may have the same id.
    temporary = root / f".{MARKER}.{os.urandom(6).hex()}"
    temporary.write_text(json.dumps({"schema_version": SCHEMA_VERSION}) + "\n", encoding="utf-8")
    flush(temporary)
    temporary.rename(root / MARKER)


def use(root: Path) -> int:
    """Register that a run uses the store; wait for a running `clean` to end.

    Returns:
        A file descriptor; closing it ends the use.

    Raises:
        OSError: The marker cannot be opened.
    """
    descriptor = os.open(root / MARKER, os.O_RDONLY | os.O_CLOEXEC)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


def is_sole_use(descriptor: int) -> bool:
    """Return whether no other process uses the store; then none can until the descriptor is closed."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def exclusive_use(root: Path) -> Iterator[None]:
    """Keep runs out of the store during the block.

    Raises:
        UsageError: A run is using the store, or the folder is not a store.
    """
    check(root)
    try:
        descriptor = os.open(root / MARKER, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise UsageError(
            "The folder is not a kdpipe store",
            where=str(root),
            why=f"it has no {MARKER}; nothing was deleted",
            hint="name the store with --store",
        ) from None
    try:
        if not is_sole_use(descriptor):
            raise UsageError(
                "A run is using this store",
                where=str(root),
                why="deleting now could remove an artefact that the run needs",
                hint="wait until the run has ended, then clean again",
            )
        yield
    finally:
        os.close(descriptor)
