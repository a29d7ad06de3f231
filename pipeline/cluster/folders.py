"""Check that driver and workers see the same folders, and the same files in them."""

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

MARK_NAME = "kdpipe-shared"
SEEN_WITHIN_S = 10.0
VISIBLE_WITHIN_S = 90.0
"""How long to wait: a network file system may show an old list of a folder's files (NFS: for a minute)."""
LOOK_S = 0.2


@dataclass(frozen=True)
class FolderMark:
    """A file that the driver wrote, and its content."""

    path: Path
    text: str


@contextlib.contextmanager
def marked(folder: Path) -> Iterator[FolderMark]:
    """Write a file into the folder that a worker can only read if it sees the same file system.

    The file is deleted after the block.
    """
    mark = FolderMark(folder / f"{MARK_NAME}-{secrets.token_hex(4)}", secrets.token_hex(16))
    with writing(folder):
        mark.path.write_text(mark.text)
    try:
        yield mark
    finally:
        mark.path.unlink(missing_ok=True)


def why_not_shared(mark: FolderMark) -> str:
    """Return why this worker does not share the driver's folder, in words; empty if it does.

    The mark is deleted, because the folder is the stage's from now on.
    """
    end = time.monotonic() + SEEN_WITHIN_S
    while True:
        try:
            text = mark.path.read_text()
            mark.path.unlink()
        except OSError as error:
            why = f"{socket.gethostname()} cannot use {mark.path}: {error.strerror}"
        else:
            return "" if text == mark.text else f"{mark.path} is another file on {socket.gethostname()}"
        if time.monotonic() >= end:
            return why
        time.sleep(LOOK_S)


def listing(folder: Path) -> dict[str, int]:
    """Return the size of each file below a folder, in bytes, by relative path."""
    sizes = {}
    for here, _, names in os.walk(folder):
        for name in names:
            path = Path(here) / name
            sizes[path.relative_to(folder).as_posix()] = path.lstat().st_size
    return sizes


def wait_for(stage: str, folder: Path, files: dict[str, int]) -> None:
    """Wait until this machine sees the files that a worker wrote; else the artefact would lack some.

    Args:
        stage: The stage, for the error.
        folder: Where the files are.
        files: The size of each file in bytes, by relative path, as `listing` returned it on the worker.

    Raises:
        StageError: The files are not visible within VISIBLE_WITHIN_S.
    """
    end = time.monotonic() + VISIBLE_WITHIN_S
    while (visible := listing(folder)) != files:
        if time.monotonic() >= end:
            differing = sorted(name for name, _ in files.items() ^ visible.items())
            raise StageError(
                f"The files that stage {stage} wrote on the cluster are not visible on this machine",
                where=str(folder),
                why=f"after {VISIBLE_WITHIN_S:.0f} s they still differ: {', '.join(differing[:5])}",
                hint="check the shared file system, then run again",
            )
        time.sleep(LOOK_S)
