"""The fingerprint of a data set: its content's digest, computed without decoding an image.

Imports only the standard library (pydantic only for plug-ins). The fingerprint depends on the
names of the files below the set's folder and on their bytes. It does not depend on the folder's path,
on times, or on the order in which the file system lists the files. The profile's settings for the
data (sizes, splits, class names) are a separate part of a key.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from pipeline.hashing import hash_file
from stages.data.class_folders import class_folders
from stages.data.registry import plugin_settings
from stages.data.set_files import digits_file, idx_files, npz_files
from stages.data.torchvision import files as torchvision_files
from stages.data.torchvision.table import SETS

Digest = Callable[[Path], str]
"""A file's path -> its SHA-256 as hexadecimal."""


def fingerprint(settings: Any, digest: Digest) -> str:
    """Return the fingerprint of a set, hexadecimal.

    Before its download, a torchvision set's fingerprint comes from its name and its official MD5 sums. After
    kdpipe has downloaded the set, the fingerprint stays the same until a file changes.

    Args:
        settings: Typed `DataSettings`, or a namespace with the same attributes.
        digest: Returns a file's SHA-256 as hexadecimal; the caller may cache it.

    Raises:
        DataError: The set is missing, or is an image folder that has only one class.
    """
    name = settings.name
    if name == "digits":
        path = digits_file()
        return _of_files(name, path.parent, [path], digest)
    if name in ("idx", "npz"):
        files = idx_files(settings) if name == "idx" else npz_files(settings)
        if settings.classes is not None:
            files.pop("classes", None)
        paths = sorted(files.values())
        return _of_files(name, paths[0].parent, paths, digest)
    if name == "image_folder":
        listing = class_folders(settings)
        return _of_files(name, listing.root, listing.files(), digest)
    if name in SETS:
        return _of_torchvision(settings, digest)
    return str(plugin_settings(settings).fingerprint(digest))


def official_fingerprint(name: str) -> str:
    """Return the fingerprint of a torchvision set as its authors publish it, from its archives' MD5 sums."""
    return _hash([name, "official", *(f"{file} {md5}" for file, md5 in SETS[name].official)])


def certify(settings: Any, base: Path) -> None:
    """Record that the files in `base` come from the official, verified archives."""
    content = _of_files(settings.name, base, torchvision_files.files(settings, base), hash_file)
    text = json.dumps({"set": settings.name, "official_content": content}) + "\n"
    _certificate(settings, base).write_text(text, encoding="utf-8")


def _of_torchvision(settings: Any, digest: Digest) -> str:
    base = torchvision_files.locate(settings)
    if base is None:
        return official_fingerprint(settings.name)
    content = _of_files(settings.name, base, torchvision_files.files(settings, base), digest)
    try:
        certified = json.loads(_certificate(settings, base).read_text(encoding="utf-8"))["official_content"]
    except (OSError, ValueError, KeyError, TypeError):
        certified = None
    return official_fingerprint(settings.name) if content == certified else content


def _certificate(settings: Any, base: Path) -> Path:
    return base / f".kdpipe-{settings.name}.json"


def _of_files(name: str, base: Path, files: Iterable[Path], digest: Digest) -> str:
    prefix = len(os.fspath(base)) + 1
    lines = []
    for path in files:
        try:
            lines.append(f"{digest(path)} {Path(os.fspath(path)[prefix:]).as_posix()}")
        except OSError as error:
            raise DataError(
                "a file of the data set cannot be read",
                where=str(path),
                why=error.strerror or str(error),
                hint="make it readable, replace it, or remove it",
            ) from error
    return _hash([name, *sorted(lines)])


def _hash(lines: list[str]) -> str:
    return hashlib.sha256(
        b"\0".join(line.encode("utf-8", "surrogateescape") for line in ("kdpipe-data-1", *lines))
    ).hexdigest()
