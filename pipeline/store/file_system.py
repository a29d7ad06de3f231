"""Try on a store's file system what the store depends on: locks, atomic renames, free space."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.child_process import python_code
from pipeline.errors import KdpipeError
from pipeline.store.store import Store

_LOCK_TRIAL = """
import fcntl, sys
file = open(sys.argv[1])
try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    print("free")
except BlockingIOError:
    print("held")
"""


def try_file_system(root: Path) -> dict[str, Any]:
    """Measure the free space, and try locks and atomic renames in a store's folder.

    The trial deletes what it wrote, and a store that it had to make.

    Args:
        root: The store's folder; it need not exist.

    Returns:
        `path`; `exists`; `free_bytes`, None where it is unknown; `locks` and `rename`, each with `works` and
        `why_not`.

    Raises:
        UsageError: The folder is not a store.
    """
    existing = next(folder for folder in (root, *root.parents) if folder.exists())
    facts: dict[str, Any] = {"path": str(root), "exists": root.exists(), "free_bytes": None}
    with contextlib.suppress(OSError):
        facts["free_bytes"] = shutil.disk_usage(existing).free
    store = Store(root)
    store.check()
    try:
        store.prepare()
        with store.scratch() as folder:
            facts["locks"] = _outcome(_try_locks, folder)
            facts["rename"] = _outcome(_try_rename, folder)
    except KdpipeError as error:
        why_not = f"{error.what}: {error.where}: {error.why}"
        facts["locks"] = facts["rename"] = {"works": False, "why_not": why_not}
    finally:
        store.undo()
        store.release()
    return facts


def _outcome(attempt: Callable[[Path], str | None], folder: Path) -> dict[str, Any]:
    try:
        why_not = attempt(folder)
    except (OSError, subprocess.SubprocessError) as error:
        why_not = str(error)
    return {"works": why_not is None, "why_not": why_not}


def _try_locks(folder: Path) -> str | None:
    """Check that a held lock keeps another process out, and that a released one does not."""
    import fcntl

    def other_process() -> str:
        return subprocess.run(
            python_code(_LOCK_TRIAL, str(path)),
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout.strip()

    path = folder / "lock"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if other_process() != "held":
            return "file locks (flock) do not keep another process out on this file system"
    if other_process() != "free":
        return "a file lock (flock) outlives its process on this file system"
    return None


def _try_rename(folder: Path) -> str | None:
    """Check that a renamed folder is whole and its old name gone, and that a file can replace another."""
    before, after = folder / "before", folder / "after"
    before.mkdir()
    with (before / "content").open("wb") as file:
        file.write(b"kdpipe")
        file.flush()
        os.fsync(file.fileno())
    before.rename(after)
    if before.exists() or (after / "content").read_bytes() != b"kdpipe":
        return "renaming a folder is not atomic on this file system"
    (folder / "old").write_bytes(b"old")
    (folder / "new").write_bytes(b"new")
    (folder / "new").replace(folder / "old")
    if (folder / "old").read_bytes() != b"new":
        return "a file cannot replace another on this file system"
    return None
