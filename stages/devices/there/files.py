"""Files on the device: received by content digest, whole before they get their name.

FOLDER/received/SHA256          a whole file, until its folder is assembled
FOLDER/received/SHA256.part     the part of a file that has arrived
FOLDER/images/SHA256/images.npy test images, which the next measurement need not send
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.errors import StageError
from pipeline.hashing import hash_file

CHUNK = 1 << 20
WAIT_S = 15.0

ABANDONED_S = 30 * 86400.0
ABANDONED = ("received/*", "measured/*", "releases/.*", "images/.*", "program-*.pyz")
"""Files that interrupted commands and earlier versions of kdpipe leave behind."""


def have(request: dict[str, Any]) -> dict[str, Any]:
    """Return which files are here already, and how much of the others.

    Args:
        request: `files`: size in bytes by `sha256`.

    Returns:
        `present`: a list of digests; `partial`: bytes received by digest.
    """
    folder = root(request)
    _sweep(folder)
    present, partial = [], {}
    elsewhere = _files_by_digest(folder)
    for sha256, size in request["files"].items():
        if _has_digest(folder / "received" / sha256, sha256) or _has_digest(elsewhere.get(sha256), sha256):
            present.append(sha256)
            continue
        with contextlib.suppress(OSError):
            received = (folder / "received" / f"{sha256}.part").stat().st_size
            partial[sha256] = received if received <= size else 0
    return {"present": present, "partial": partial}


def receive(request: dict[str, Any]) -> dict[str, Any]:
    """Append standard input to a file from `offset` on; once it is whole it gets its name.

    Args:
        request: `sha256`, `size` and `offset`, in bytes.

    Returns:
        `received`: bytes of the file that are here; `whole`: whether that is all of it.

    Raises:
        StageError: the whole file has another digest; then it is deleted.
    """
    received_folder = root(request) / "received"
    received_folder.mkdir(parents=True, exist_ok=True)
    sha256, size, offset = request["sha256"], request["size"], request["offset"]
    part = received_folder / f"{_digest(sha256)}.part"
    with part.open("ab") as file, locked(file.fileno(), part.name):
        file.truncate(offset)
        end = file.seek(0, os.SEEK_END)
        if end != offset:
            return {"received": end, "whole": False}
        while chunk := os.read(0, CHUNK):
            file.write(chunk)
            file.flush()
        os.fsync(file.fileno())
        received = part.stat().st_size
        if received < size:
            return {"received": received, "whole": False}
        if hash_file(part) != sha256:
            part.unlink()
            raise StageError("A file arrived damaged", where=sha256, why="its SHA-256 is another one")
        part.replace(received_folder / sha256)
    return {"received": received, "whole": True}


def assemble(request: dict[str, Any]) -> dict[str, Any]:
    """Assemble a folder of files that are here; it is complete before it gets its name.

    Args:
        request: `place`: the folder; `files`: `sha256` by path.

    Returns:
        `assembled`: False if the folder was there already.

    Raises:
        StageError: a file is missing or damaged.
    """
    folder = root(request)
    place = inside(folder, request["place"])
    if place.is_dir() and all(_has_digest(place / path, sha) for path, sha in request["files"].items()):
        return {"assembled": False}
    elsewhere = _files_by_digest(folder)
    new = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        for path, sha256 in request["files"].items():
            target = inside(new, path)
            target.parent.mkdir(parents=True, exist_ok=True)
            received = folder / "received" / _digest(sha256)
            source = received if received.exists() else elsewhere.get(sha256)
            if source is None:
                raise StageError("A file is missing", where=path, why="it was not received")
            shutil.copyfile(source, target)
            if hash_file(target) != sha256:
                received.unlink(missing_ok=True)
                raise StageError(
                    "A file is damaged on the device", where=path, hint="run the same command again"
                )
            flush(target)
        shutil.rmtree(place, ignore_errors=True)
        new.replace(place)
        flush(place.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    for sha256 in set(request["files"].values()):
        (folder / "received" / sha256).unlink(missing_ok=True)
    return {"assembled": True}


def fetch(request: dict[str, Any]) -> dict[str, Any]:
    """Return a piece of the file `path` as base64: `length` bytes from `offset` on."""
    file = inside(root(request), request["path"])
    with file.open("rb") as stream:
        stream.seek(request["offset"])
        piece = stream.read(request["length"])
    return {"bytes": base64.b64encode(piece).decode("ascii")}


def remove(request: dict[str, Any]) -> dict[str, Any]:
    """Delete the folder `place`."""
    shutil.rmtree(inside(root(request), request["place"]), ignore_errors=True)
    return {}


def keep_newest(request: dict[str, Any]) -> dict[str, Any]:
    """Mark the folder `place` as the newest; delete all but the newest `keep` of the folders beside it."""
    place = inside(root(request), request["place"])
    os.utime(place)
    beside = sorted(
        (path for path in place.parent.iterdir() if path.is_dir()), key=_modified_ns, reverse=True
    )
    for path in beside[request["keep"] :]:
        shutil.rmtree(path, ignore_errors=True)
    return {}


def listing(folder: Path) -> dict[str, dict[str, Any]]:
    """Return every file below a folder: `sha256` and `size` by relative path."""
    return {
        path.relative_to(folder).as_posix(): {"sha256": hash_file(path), "size": path.stat().st_size}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def root(request: dict[str, Any]) -> Path:
    """Return kdpipe's folder; a relative path begins in the user's home."""
    return Path(Path.home(), request["folder"])


def inside(folder: Path, name: str) -> Path:
    """Return a path below `folder`. Raise StageError for one that leads out of it."""
    parts = PurePosixPath(name).parts
    if not parts or parts[0] == "/" or ".." in parts:
        raise StageError("A name leads out of kdpipe's folder", where=name)
    return folder.joinpath(*parts)


def flush(path: Path) -> None:
    """Write a file or folder through to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def locked(handle: int, name: str, wait_s: float = WAIT_S) -> Iterator[None]:
    """Let one process at a time in; a link that broke may have left one that is just ending.

    Args:
        handle: of the open lock file.
        name: what an error names.
        wait_s: how long to wait, in seconds.

    Raises:
        StageError: another process still holds the lock.
    """
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise StageError(
                    "Another kdpipe is at work on the device", where=name, hint="wait until it has ended"
                ) from None
            time.sleep(0.1)
    yield


def _sweep(folder: Path) -> None:
    """Delete files that were abandoned so long ago, but not the program that runs this."""
    limit = time.time() - ABANDONED_S
    for path in (path for pattern in ABANDONED for path in folder.glob(pattern)):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime > limit or path.name == Path(sys.argv[0]).name:
                continue
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _files_by_digest(folder: Path) -> dict[str, Path]:
    """Return the files of the bundles and the test images that are here, by digest."""
    known: dict[str, Path] = {}
    for manifest in [
        *folder.glob("releases/*/manifest.json"),
        *folder.glob("measured/*/bundle/manifest.json"),
    ]:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            for path, entry in json.loads(manifest.read_text(encoding="utf-8"))["files"].items():
                known.setdefault(entry["sha256"], inside(manifest.parent, path))
    for images in folder.glob("images/*/images.npy"):
        known.setdefault(images.parent.name, images)
    return known


def _has_digest(path: Path | None, sha256: str) -> bool:
    return path is not None and path.is_file() and hash_file(path) == sha256


def _modified_ns(path: Path) -> int:
    return path.stat().st_mtime_ns


def _digest(sha256: str) -> str:
    if len(sha256) != 64 or set(sha256) - set("0123456789abcdef"):
        raise StageError("A digest is invalid", where=sha256)
    return sha256
