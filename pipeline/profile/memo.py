"""Cache validated profiles, so that an unchanged one is loaded without pydantic and yaml.

A memo is one JSON file, named by the SHA-256 of the profile's path and content, the overrides, kdpipe's
version and the size and time of the sources that declare settings. It lists the digests of all files that
were read, and the paths at which a new file would be read instead; it is valid only while these are
unchanged. A damaged memo is ignored.

A memo is made when the profile is read, and written after a successful run: it never has content that the run
did not use.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import stages
from pipeline import __version__
from pipeline.errors import UsageError
from pipeline.hashing import hash_bytes
from pipeline.profile.files import ProfileFiles

_FORMAT = 1
_MAX_MEMOS = 64


@dataclass(frozen=True)
class Memo:
    """A validated profile, ready to be written.

    Attributes:
        name: The file's name.
        text: The file's content.
    """

    name: str
    text: str


def name_of(path: Path, content: bytes, overrides: Sequence[str]) -> str:
    """Return the file name of a profile's memo.

    Args:
        path: The profile's file.
        content: The content of that file.
        overrides: `KEY=VALUE`, as given.
    """
    digest = hash_bytes(content)
    parts = [_FORMAT, __version__, str(path), digest, list(overrides), _declarations()]
    return f"{hash_bytes(json.dumps(parts))}.json"


def make(name: str, values: Mapping[str, Any], contents: Mapping[Path, bytes]) -> Memo:
    """Return the memo of a profile that was read.

    Args:
        name: The file name of `name_of`.
        values: What `recall` returns later, JSON-ready; with `absent`, the paths without a file at which a
            file would have been read.
        contents: By path, the files that were read.
    """
    digests = {str(path): hash_bytes(content) for path, content in contents.items()}
    text = json.dumps({**values, "digests": digests})
    return Memo(name, f"{hash_bytes(text)}\n{text}")


def recall(folder: Path, name: str, files: ProfileFiles) -> dict[str, Any] | None:
    """Return the values of a memo, and the `digests` of its files; None unless all of it is still valid."""
    try:
        digest, _, text = (folder / name).read_text("utf-8").partition("\n")
        if digest != hash_bytes(text):
            return None
        memo: dict[str, Any] = json.loads(text)
        for path, sha256 in memo["digests"].items():
            if hash_bytes(files.read(Path(path))) != sha256:
                return None
    except (OSError, ValueError, UsageError):
        return None
    return None if any(files.is_file(Path(path)) for path in memo["absent"]) else memo


def remember(folder: Path, memo: Memo) -> None:
    """Write a memo. A folder that cannot be written to is not an error."""
    import tempfile  # slow to import, and not needed to recall

    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix="memo-", suffix=".tmp", dir=folder)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(memo.text)
            Path(name).replace(folder / memo.name)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        _forget_oldest(folder)


def _declarations() -> list[tuple[str, int, int]]:
    """Return name, size and time of the sources that declare settings or read profiles."""
    declaring = Path(stages.__file__).parent
    reading = Path(__file__).parent
    files = [declaring / "settings.py", declaring / "fields.py", *declaring.glob("*/settings.py")]
    files += declaring.glob("*/settings/*.py")
    files += reading.glob("*.py")
    states = [(file, file.stat()) for file in sorted(files)]
    return [(f"{file.parent.name}/{file.name}", state.st_size, state.st_mtime_ns) for file, state in states]


def _forget_oldest(folder: Path) -> None:
    memos = sorted(folder.glob("*.json"), key=lambda file: file.stat().st_mtime_ns)
    for file in memos[:-_MAX_MEMOS]:
        file.unlink(missing_ok=True)
