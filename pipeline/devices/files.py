"""Copy files to and from a device by content digest.

A file that the device already has is not sent. A transfer that broke off continues where it ended.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.devices.link import ATTEMPTS, RETRY_PAUSE_S, Link, LinkLost
from pipeline.errors import StageError
from pipeline.hashing import hash_file

DAMAGED_FILE = "A file arrived damaged"
"""The error of `stages.devices.there.files.receive` that is fixed by sending the file again."""

CHUNK_BYTES = 4 << 20
"""Size of one request when a file is fetched, in bytes."""

Report = Callable[[str], None]
"""Prints one line about the progress of the work."""


@dataclass(frozen=True)
class LocalFile:
    """A file on this machine to deliver.

    Attributes:
        path: Its path on this machine.
        sha256: The SHA-256 of its content, in hex.
        size_bytes: Its size.
    """

    path: Path
    sha256: str
    size_bytes: int


def local_files(folder: Path) -> dict[str, LocalFile]:
    """Return every file below a folder by its relative path; the digests are computed now."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): local_file(path) for path in files}


def local_file(path: Path) -> LocalFile:
    """Return a file with its digest, which is computed now, and its size."""
    return LocalFile(path, hash_file(path), path.stat().st_size)


def deliver(link: Link, files: Mapping[str, LocalFile], device_folder: str, report: Report) -> int:
    """Create a folder of these files on the device.

    A file gets its name on the device only after its digest was verified there. The folder gets its name
    only when it has all files.

    Args:
        link: The link to the device.
        files: The files by their path relative to the new folder.
        device_folder: The new folder, relative to the device's folder.
        report: Prints a line when a transfer continues or is repeated.

    Returns:
        How many bytes were sent.

    Raises:
        StageError: A file arrives damaged again and again.
        LinkLost: The link stays broken.
    """
    contents = {file.sha256: file for file in files.values()}
    sizes = {sha256: file.size_bytes for sha256, file in contents.items()}
    received = link.call("have", files=sizes)
    sent_bytes = 0
    for sha256, file in contents.items():
        if sha256 not in received["present"]:
            offset = received["partial"].get(sha256, 0)
            sent_bytes += _send(link, file, offset, report)
    link.call("assemble", place=device_folder, files={path: file.sha256 for path, file in files.items()})
    return sent_bytes


def _send(link: Link, file: LocalFile, offset: int, report: Report) -> int:
    start, why = offset, ""
    for attempt in range(ATTEMPTS):
        if offset:
            report(f"{link.name}: {file.path.name} continues at byte {offset} of {file.size_bytes}")
        try:
            answer = link.send(file.path, file.sha256, file.size_bytes, offset)
        except LinkLost:
            if attempt + 1 == ATTEMPTS:
                raise
            time.sleep(RETRY_PAUSE_S)
            received = link.call("have", files={file.sha256: file.size_bytes})
            if file.sha256 in received["present"]:
                return file.size_bytes - start
            offset = received["partial"].get(file.sha256, 0)
            continue
        except StageError as error:
            if error.what != DAMAGED_FILE:
                raise  # for example a full disk, which sending again does not fix
            start, offset, why = 0, 0, error.why or error.what
            report(f"{link.name}: {file.path.name} arrived damaged: sending it again")
            continue
        if answer["whole"]:
            return file.size_bytes - start
        offset, why = answer["received"], "the link ended early"
    raise StageError(
        "A file does not arrive complete on the device",
        where=f"{link.where}, {file.path.name}",
        why=why,
        hint="check the device's disk and the link, then run the same command again",
    )


def fetch(link: Link, device_folder: str, files: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """Copy files of a folder on the device to this machine; each is verified before it gets its name.

    Args:
        link: The link to the device.
        device_folder: The folder there, relative to the device's folder.
        files: `sha256` and `size` (bytes) of each file by its relative path.
        folder: The folder on this machine.

    Raises:
        StageError: A file arrives damaged.
    """
    for path, entry in files.items():
        target = folder / path
        if target.is_file() and hash_file(target) == entry["sha256"]:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.part")
        received_bytes = 0
        with part.open("wb") as stream:
            while received_bytes < entry["size"]:
                answer = link.call(
                    "fetch", path=f"{device_folder}/{path}", offset=received_bytes, length=CHUNK_BYTES
                )
                chunk = base64.b64decode(answer["bytes"])
                if not chunk:
                    break
                received_bytes += stream.write(chunk)
        if hash_file(part) != entry["sha256"]:
            part.unlink()
            raise StageError(
                "A result arrived damaged from the device",
                where=f"{link.where}, {path}",
                why="its SHA-256 differs from the one that the device reported",
                hint="run the same command again",
            )
        part.replace(target)
