"""Remembers what a valid profile says, so that an unchanged one is loaded without pydantic and yaml.

A memo is one JSON file, named by the SHA-256 of the profile's path and content, the overrides,
kdpipe's version and the state of the sources that declare settings. It lists the digests of all
files that were read, and the places where a new file would change the reading; it holds only while
these are as they were. A damaged memo counts as none.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import stages
from pipeline import __version__
from pipeline.hashing import hash_bytes, hash_file

_FORMAT = 1
_KEPT = 64


def recall(folder: Path, path: Path, overrides: Sequence[str]) -> dict[str, Any] | None:
    """What was remembered of the profile at `path`, if all of it still holds."""
    try:
        digest, _, document = _file(folder, path, overrides).read_text("utf-8").partition("\n")
        if digest != hash_bytes(document):
            return None
        memo: dict[str, Any] = json.loads(document)
        for name, sha256 in memo["digests"].items():
            if hash_file(name) != sha256:
                return None
    except (OSError, ValueError):
        return None
    return None if any(Path(name).exists() for name in memo["absent"]) else memo


def remember(folder: Path, path: Path, overrides: Sequence[str], memo: dict[str, Any]) -> None:
    """Keeps `memo`; a folder that cannot be written to is no fault."""
    import tempfile  # slow to import, and not needed to recall

    document = json.dumps(memo)
    digest = hash_bytes(document)
    with contextlib.suppress(OSError):
        target = _file(folder, path, overrides)
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix="memo-", suffix=".tmp", dir=folder)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(f"{digest}\n{document}")
            Path(name).replace(target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        _forget_oldest(folder)


def _file(folder: Path, path: Path, overrides: Sequence[str]) -> Path:
    made_of = [_FORMAT, __version__, str(path), path.read_bytes().hex(), list(overrides), _declarations()]
    return folder / f"{hash_bytes(json.dumps(made_of))}.json"


def _declarations() -> list[tuple[str, int, int]]:
    """Name, size and time of the sources that declare settings or read profiles."""
    declaring = Path(stages.__file__).parent
    reading = Path(__file__).parent
    files = [declaring / "settings.py", declaring / "fields.py", *declaring.glob("*/settings.py")]
    files += declaring.glob("*/settings/*.py")
    files += reading.glob("*.py")
    states = [(file, file.stat()) for file in sorted(files)]
    return [(f"{file.parent.name}/{file.name}", state.st_size, state.st_mtime_ns) for file, state in states]


def _forget_oldest(folder: Path) -> None:
    memos = sorted(folder.glob("*.json"), key=lambda file: file.stat().st_mtime_ns)
    for file in memos[:-_KEPT]:
        file.unlink(missing_ok=True)
