"""Tells a data set by its content, without reading an image.

Light: imports the standard library alone (pydantic only for plug-ins). The fingerprint depends on the
names of the files below the set's folder and on their bytes; it does not depend on where the folder
lies, on times, or on the order in which the file system lists it. What the profile says of the
data (sizes, splits, class names) is keyed apart from it.
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
from stages.data.places import digits_file, idx_files, npz_files
from stages.data.registry import plugin_settings
from stages.data.torchvision import files as torchvision_files
from stages.data.torchvision.table import SETS

Digest = Callable[[Path], str]


def fingerprint(settings: Any, digest: Digest) -> str:
    """The hexadecimal fingerprint of a set.

    settings: typed `DataSettings`, or a namespace with the same attributes.
    digest: gives a file's SHA-256 as hexadecimal; the caller remembers what it has hashed.

    Raises DataError for a set that is missing or has one class only. A torchvision set that is yet to
    be downloaded is told by its name and its official MD5 sums; it keeps that fingerprint when kdpipe
    has downloaded it, for as long as its files stay as they are.
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
        found = class_folders(settings)
        return _of_files(name, found.root, found.files(), digest)
    if name in SETS:
        return _of_torchvision(settings, digest)
    return str(plugin_settings(settings).fingerprint(digest))


def official_fingerprint(name: str) -> str:
    """Of a torchvision set as its authors publish it, from the MD5 sums of its archives."""
    return _hash([name, "official", *(f"{file} {md5}" for file, md5 in SETS[name].official)])


def certify(settings: Any, base: Path) -> None:
    """Writes down that what lies in `base` now came out of the official, verified archives."""
    content = _of_files(settings.name, base, torchvision_files.files(settings, base), hash_file)
    text = json.dumps({"set": settings.name, "official_content": content}) + "\n"
    _certificate(settings, base).write_text(text, encoding="utf-8")


def _of_torchvision(settings: Any, digest: Digest) -> str:
    base = torchvision_files.found(settings)
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
