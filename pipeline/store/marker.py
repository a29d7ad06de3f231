"""The file that marks a folder as a store, and keeps `clean` and the runs apart."""

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
"""A store's folders, but for `logs`: a crash may be written down before there is a store."""


def check(root: Path) -> None:
    """Raises UsageError if the folder is there but is no store that this kdpipe can use."""
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
            why="it is no JSON with a schema_version",
            hint=f"if this is a kdpipe store: echo '{{\"schema_version\": {SCHEMA_VERSION}}}' > '{marker}'",
        ) from None
    except OSError as error:
        raise refusal(error, root) from error
    if schema != SCHEMA_VERSION:
        raise UsageError(
            "The store was written by another version of kdpipe",
            where=str(marker),
            why=f"its schema_version is {schema}; kdpipe {__version__} knows {SCHEMA_VERSION}",
            hint="use that version of kdpipe, or name another store with --store",
        )


def write(root: Path) -> None:
    """Marks a folder; whole or not at all."""
    fresh = root / f".{MARKER}.{os.urandom(6).hex()}"  # a process id may be that of another container too
    fresh.write_text(json.dumps({"schema_version": SCHEMA_VERSION}) + "\n", encoding="utf-8")
    flush(fresh)
    fresh.rename(root / MARKER)


def use(root: Path) -> int:
    """Says that a run is in the store, until the descriptor is closed; waits for a `clean` to end."""
    descriptor = os.open(root / MARKER, os.O_RDONLY | os.O_CLOEXEC)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


def is_sole_use(descriptor: int) -> bool:
    """Whether no other process is in the store; if so, none can be until the descriptor is closed."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def alone(root: Path) -> Iterator[None]:
    """Keeps runs out of the store. Raises UsageError if one is in it, or if the folder is no store."""
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
                why="deleting now could take an artefact from under it",
                hint="wait until the run has ended, then clean again",
            )
        yield
    finally:
        os.close(descriptor)
