"""SHA-256 of bytes, texts and files, as 64 hexadecimal digits. Standard library only."""

from __future__ import annotations

import hashlib
from pathlib import Path

CHUNK_BYTES = 1 << 20


def hash_bytes(content: bytes | str) -> str:
    """Return the SHA-256 of bytes, or of a text in UTF-8."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def hash_file(path: Path | str) -> str:
    """Return the SHA-256 of a file's content, which is read in pieces of 1 MiB.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:  # noqa: PTH123 - a str as well
        while chunk := file.read(CHUNK_BYTES):  # hashlib.file_digest needs Python 3.11; devices have 3.10
            digest.update(chunk)
    return digest.hexdigest()
