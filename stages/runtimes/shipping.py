"""What of a built target's folder goes to the device, and its digest. Light."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

NOT_SHIPPED = ("timing.cache",)
"""Files that only speed up the next build."""


@dataclass(frozen=True)
class Shipped:
    """files: relative to the folder, sorted. sha256: of the file; of several files, that of the
    lines `SHA256  NAME` for each (what `sha256sum` prints), in order of names."""

    files: tuple[str, ...]
    size_bytes: int
    sha256: str


def what_ships(folder: Path) -> Shipped:
    """Reads and digests the files of a built target's folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in NOT_SHIPPED)
    names = [path.relative_to(folder).as_posix() for path in paths]
    digests = [file_sha256(path) for path in paths]
    if len(digests) == 1:
        whole = digests[0]
    else:
        lines = "".join(
            f"{digest}  {name}\n" for name, digest in sorted(zip(names, digests, strict=True))
        )
        whole = hashlib.sha256(lines.encode()).hexdigest()
    return Shipped(tuple(names), sum(path.stat().st_size for path in paths), whole)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
