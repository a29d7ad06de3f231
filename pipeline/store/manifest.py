"""The manifest of an artefact: what it is made of, from what, by whom, and whether it is still whole."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.store.keys import canonical, content_digest, sha256_of

SCHEMA_VERSION = 1
MANIFEST = "artefact.json"


@dataclass(frozen=True)
class Manifest:
    """An artefact in words.

    key_parts: all that went into the key; the key is their SHA-256.
    digest: of the content: the SHA-256 of every file by relative path, this manifest left out.
    files: by relative path, `sha256` and `size` (bytes).
    inputs: by stage name, `key` and `digest` of the artefact that was read.
    created: UTC, ISO 8601. seconds: what making it took.
    profile: `path` and `name` of the profile it was first made for.
    checksum: of all other fields, so that a manifest that was tampered with is noticed.
    """

    stage: str
    version: int
    key: str
    key_parts: Mapping[str, Any]
    digest: str
    files: Mapping[str, Mapping[str, Any]]
    inputs: Mapping[str, Mapping[str, str]]
    metrics: Mapping[str, Any]
    created: str
    seconds: float
    host: str
    kdpipe: str
    profile: Mapping[str, str]
    schema_version: int = SCHEMA_VERSION
    checksum: str = ""

    def sealed(self) -> Manifest:
        """The same with its checksum. Raises TypeError or ValueError if a field is no JSON value."""
        return replace(self, checksum=self._checksum())

    def is_sealed(self) -> bool:
        return self.checksum == self._checksum()

    def as_text(self) -> str:
        return json.dumps(asdict(self), indent=2, sort_keys=True, allow_nan=False) + "\n"

    def _checksum(self) -> str:
        fields = asdict(self)
        del fields["checksum"]
        return sha256_of(fields)


@dataclass(frozen=True)
class Damage:
    """What is wrong with an artefact: which file, the SHA-256 it should have, and what it has."""

    file: str
    expected: str | None
    found: str | None

    def __str__(self) -> str:
        if self.file == MANIFEST:
            return f"{MANIFEST} cannot be trusted: {self.found}"
        if self.found is None:
            return f"{self.file} is missing"
        return f"{self.file} has SHA-256 {self.found}, not {self.expected}"


class DamagedManifest(Exception):  # noqa: N818 - never leaves the store
    """A manifest that cannot be read or contradicts itself."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.damage = Damage(MANIFEST, None, problem)


class NewerSchema(Exception):  # noqa: N818 - not an error by itself
    """The manifest was written by a newer kdpipe than this one."""

    def __init__(self, schema_version: int) -> None:
        super().__init__(
            f"written by a newer kdpipe (schema {schema_version}, this one knows {SCHEMA_VERSION})"
        )
        self.schema_version = schema_version


def parse(text: str | bytes, stage: str, key: str) -> Manifest:
    """Reads the manifest of the artefact STAGE/KEY. Raises DamagedManifest or NewerSchema."""
    try:
        fields = json.loads(text)
        schema = fields["schema_version"]
    except (ValueError, KeyError, TypeError):
        raise DamagedManifest("it is no JSON with a schema_version") from None
    if isinstance(schema, int) and schema > SCHEMA_VERSION:
        raise NewerSchema(schema)
    try:
        manifest = Manifest(**fields)
        problem = _problem(manifest, stage, key)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        problem = f"a field is missing, unknown or of another type ({error})"
    if problem:
        raise DamagedManifest(problem)
    return manifest


def _problem(manifest: Manifest, stage: str, key: str) -> str:
    """What contradicts itself in a manifest, in words; empty if nothing does."""
    if not manifest.is_sealed():
        return "its checksum does not match"
    if (manifest.stage, manifest.key) != (stage, key):
        return f"it is the manifest of {manifest.stage}/{manifest.key}"
    if manifest.key != sha256_of(manifest.key_parts):
        return "its key does not match what went into it"
    if manifest.digest != content_digest({path: entry["sha256"] for path, entry in manifest.files.items()}):
        return "its digest does not match its files"
    for path in manifest.files:
        parts = PurePosixPath(path).parts
        if not parts or parts[0] == "/" or ".." in parts or str(PurePosixPath(*parts)) != path:
            return f"it names a file outside the artefact ({path!r})"
    return ""


def find_damage(folder: Path, manifest: Manifest, digest: Callable[[Path], str]) -> Damage | None:
    """The first file of an artefact that is missing or changed, or None.

    digest: the SHA-256 of a file: remembered (a stat walk) or read anew. A file that the manifest
    does not name is no part of the artefact and is passed over.
    """
    for path, entry in manifest.files.items():
        place = folder / path
        try:
            status = place.lstat()
            if not stat.S_ISREG(status.st_mode):
                return Damage(path, entry["sha256"], "no regular file")
            found = digest(place)
        except (FileNotFoundError, NotADirectoryError):
            return Damage(path, entry["sha256"], None)
        if found != entry["sha256"]:
            return Damage(path, entry["sha256"], found)
    return None


def list_files(folder: Path) -> dict[str, Path]:
    """The files below a folder by relative path, sorted.

    Raises ValueError for a link, a hard link or anything else that is no plain file of its own:
    its content could change behind the store's back.
    """
    found = {}
    for path in _walk(folder):
        status = path.lstat()
        name = path.relative_to(folder).as_posix()
        if stat.S_ISLNK(status.st_mode):
            raise ValueError(f"{name} is a symbolic link")
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{name} is no regular file")
        if status.st_nlink > 1:
            raise ValueError(f"{name} is a hard link ({status.st_nlink} names)")
        if name == MANIFEST:
            raise ValueError(f"the name {MANIFEST} is the store's own")
        found[name] = path
    return dict(sorted(found.items()))


def jsonable(value: Any) -> Any:
    """A copy of a stage's metrics that JSON can hold; NaN and the infinities become null.

    Raises TypeError for anything that is no JSON value.
    """
    plain = _finite(value)
    canonical(plain)
    return plain


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value


def _walk(folder: Path) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(Path(entry.path))
            else:
                yield Path(entry.path)
