"""Files to and from a device, by content digest: what lies there is not sent, what broke off goes on."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.devices.link import PAUSE_S, TRIES, Link, LinkLost
from pipeline.errors import StageError
from pipeline.hashing import hash_file

DAMAGED = "A file arrived damaged"
"""What `stages.devices.there.files.receive` calls the fault that sending once more fixes."""

PIECE = 4 << 20
"""Bytes asked for at once when a file is fetched."""


@dataclass(frozen=True)
class Item:
    """A file to deliver: where it lies here, its SHA-256 and its size."""

    path: Path
    sha256: str
    size_bytes: int


def items_of(folder: Path) -> dict[str, Item]:
    """Every file below a folder, by relative path; digests are taken now."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): item_of(path) for path in files}


def item_of(path: Path) -> Item:
    return Item(path, hash_file(path), path.stat().st_size)


def deliver(link: Link, items: Mapping[str, Item], place: str, tell: Callable[[str], None]) -> int:
    """Makes the folder `place` of these files on the device; returns how many bytes were sent.

    A file has its name only when its digest was verified there, the folder only when all its files have.
    Raises StageError if a file arrives damaged again and again, LinkLost if the link stays broken.
    """
    wanted = {item.sha256: item for item in items.values()}
    sizes = {sha256: item.size_bytes for sha256, item in wanted.items()}
    there = link.ask("have", files=sizes)
    sent = 0
    for sha256, item in wanted.items():
        if sha256 not in there["present"]:
            offset = there["partial"].get(sha256, 0)
            sent += _send(link, item, offset, tell)
    link.ask("assemble", place=place, files={path: item.sha256 for path, item in items.items()})
    return sent


def _send(link: Link, item: Item, offset: int, tell: Callable[[str], None]) -> int:
    begun, why = offset, ""
    for attempt in range(TRIES):
        if offset:
            tell(f"{link.name}: {item.path.name} goes on at {offset} of {item.size_bytes} bytes")
        try:
            told = link.send(item.path, item.sha256, item.size_bytes, offset)
        except LinkLost:
            if attempt + 1 == TRIES:
                raise
            time.sleep(PAUSE_S)
            there = link.ask("have", files={item.sha256: item.size_bytes})
            if item.sha256 in there["present"]:
                return item.size_bytes - begun
            offset = there["partial"].get(item.sha256, 0)
            continue
        except StageError as error:
            if error.what != DAMAGED:
                raise  # e.g. a full disk, which sending once more does not fix
            begun, offset, why = 0, 0, error.why or error.what
            tell(f"{link.name}: {item.path.name} arrived damaged: once more")
            continue
        if told["whole"]:
            return item.size_bytes - begun
        offset, why = told["received"], "the link ended early"
    raise StageError(
        "A file does not arrive whole on the device",
        where=f"{link.where}, {item.path.name}",
        why=why,
        hint="check the device's disk and the link, then run the same command again",
    )


def fetch(link: Link, place: str, files: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """Brings files of a folder on the device into `folder` here, each verified before it has its name.

    files: `sha256` and `size` by relative path. Raises StageError for one that arrives damaged.
    """
    for path, entry in files.items():
        target = folder / path
        if target.is_file() and hash_file(target) == entry["sha256"]:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.part")
        with part.open("wb") as file:
            while file.tell() < entry["size"]:
                told = link.ask("fetch", path=f"{place}/{path}", offset=file.tell(), length=PIECE)
                piece = base64.b64decode(told["bytes"])
                if not piece:
                    break
                file.write(piece)
        if hash_file(part) != entry["sha256"]:
            part.unlink()
            raise StageError(
                "A result arrived damaged from the device",
                where=f"{link.where}, {path}",
                why="its SHA-256 is not the one that the device told",
                hint="run the same command again",
            )
        part.replace(target)
