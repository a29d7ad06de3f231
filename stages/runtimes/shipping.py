"""Which files of a built target ship to a device, and their digest. Light."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.hashing import hash_bytes, hash_file

NOT_SHIPPED = ("timing.cache",)
"""Files that only speed up the next build; the build stage moves them elsewhere."""


@dataclass(frozen=True)
class Shipped:
    """The files of a target that ship.

    Attributes:
        files: relative to the folder, sorted.
        size_bytes: of all files.
        sha256: of the file; of several files, that of the lines `SHA256  NAME` for each (the output of
            `sha256sum`), in order of names.
    """

    files: tuple[str, ...]
    size_bytes: int
    sha256: str


def what_ships(folder: Path) -> Shipped:
    """Read and digest the files of a built target's folder."""
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in NOT_SHIPPED
    )
    digests = [hash_file(folder / name) for name in names]
    if len(names) == 1:
        whole = digests[0]
    else:
        lines = "".join(f"{digest}  {name}\n" for name, digest in zip(names, digests, strict=True))
        whole = hash_bytes(lines)
    return Shipped(tuple(names), sum((folder / name).stat().st_size for name in names), whole)
