"""Whether driver and workers see the same folders, and the same files in them."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import StageError
from pipeline.store.disk import writing

MARK = "kdpipe-shared"
SEEN_WITHIN_S = 10.0
VISIBLE_WITHIN_S = 90.0
"""A network file system may show an old list of a folder's files for a while (NFS: a minute)."""
LOOK_S = 0.2


@dataclass(frozen=True)
class Mark:
    """A file that the driver wrote, and what it says."""

    path: Path
    text: str


@contextlib.contextmanager
def marker(folder: Path) -> Iterator[Mark]:
    """A file in `folder` that a task can only read if it sees the same file system."""
    mark = Mark(folder / f"{MARK}-{secrets.token_hex(4)}", secrets.token_hex(16))
    with writing(folder):
        mark.path.write_text(mark.text)
    try:
        yield mark
    finally:
        mark.path.unlink(missing_ok=True)


def unseen(mark: Mark) -> str:
    """Why a worker does not share the driver's folder, in words; empty if it does.

    The mark is taken away, as the folder is the stage's own from now on.
    """
    end = time.monotonic() + SEEN_WITHIN_S
    while True:
        try:
            found = mark.path.read_text()
            mark.path.unlink()
        except OSError as error:
            why = f"{socket.gethostname()} cannot use {mark.path}: {error.strerror}"
        else:
            return "" if found == mark.text else f"{mark.path} is another file on {socket.gethostname()}"
        if time.monotonic() >= end:
            return why
        time.sleep(LOOK_S)


def listing(folder: Path) -> dict[str, int]:
    """The files below a folder by relative path, with their size in bytes."""
    found = {}
    for here, _, names in os.walk(folder):
        for name in names:
            path = Path(here) / name
            found[path.relative_to(folder).as_posix()] = path.lstat().st_size
    return found


def wait_for(stage: str, folder: Path, files: dict[str, int]) -> None:
    """Waits until this machine sees the files that a worker left, or an artefact would lack some.

    Raises StageError if it does not within VISIBLE_WITHIN_S.
    """
    end = time.monotonic() + VISIBLE_WITHIN_S
    while (found := listing(folder)) != files:
        if time.monotonic() >= end:
            differing = sorted(name for name, _ in files.items() ^ found.items())
            raise StageError(
                f"What stage {stage} left on the cluster is not what is seen here",
                where=str(folder),
                why=f"after {VISIBLE_WITHIN_S:.0f} s they still differ: {', '.join(differing[:5])}",
                hint="check the shared file system, then run again",
            )
        time.sleep(LOOK_S)
