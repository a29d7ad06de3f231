"""The manifest of an artefact: its files, its inputs, who made it, and whether it is still whole."""

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
    """The description of an artefact that is stored beside its files.

    Attributes:
        stage: The stage that made the artefact.
        version: The version of that stage.
        key: The SHA-256 of `key_parts`.
        key_parts: Everything that the key depends on.
        digest: The digest of the content: of the SHA-256 of every file by relative path, without this
            manifest.
        files: By relative path, `sha256` and `size` (bytes).
        inputs: By stage name, `key` and `digest` of the artefact that was read.
        metrics: The metrics of the stage, JSON-ready.
        created: When it was made, in UTC (ISO 8601).
        seconds: How long making it took.
        host: The host that made it.
        kdpipe: The version of kdpipe that made it.
        profile: `path` and `name` of the profile that it was first made for.
        schema_version: The version of this format.
        checksum: The SHA-256 of all other fields, so that a changed manifest is detected.
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
        """Return the same manifest with its checksum.

        Raises:
            TypeError: A field is not a JSON value.
            ValueError: A field contains NaN or an infinity.
        """
        return replace(self, checksum=self._checksum())

    def is_sealed(self) -> bool:
        """Return whether the checksum matches the other fields."""
        return self.checksum == self._checksum()

    def as_text(self) -> str:
        """Return the content of the manifest's file."""
        return json.dumps(asdict(self), indent=2, sort_keys=True, allow_nan=False) + "\n"

    def _checksum(self) -> str:
        fields = asdict(self)
        del fields["checksum"]
        return sha256_of(fields)


@dataclass(frozen=True)
class Damage:
    """A missing or changed file of an artefact, or a manifest that cannot be trusted.

    Attributes:
        file: The file's relative path.
        expected: The SHA-256 in the manifest; None if the file is the manifest itself.
        actual: The SHA-256 of the file, or the problem in words; None if the file is missing.
    """

    file: str
    expected: str | None
    actual: str | None

    def __str__(self) -> str:
        if self.file == MANIFEST:
            return f"{MANIFEST} cannot be trusted: {self.actual}"
        if self.actual is None:
            return f"{self.file} is missing"
        return f"{self.file} has SHA-256 {self.actual}, not {self.expected}"


class DamagedManifest(Exception):  # noqa: N818 - never leaves the store
    """A manifest that cannot be read or contradicts itself."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.damage = Damage(MANIFEST, None, problem)


class NewerSchema(Exception):  # noqa: N818 - not an error by itself
    """The manifest was written by a newer kdpipe than this one."""

    def __init__(self, schema_version: int) -> None:
        super().__init__(
            f"written by a newer kdpipe (schema {schema_version}, this one reads {SCHEMA_VERSION})"
        )
        self.schema_version = schema_version


def parse(text: str | bytes, stage: str, key: str) -> Manifest:
    """Parse the manifest of the artefact STAGE/KEY.

    Args:
        text: The content of the manifest's file.
        stage: The stage that the manifest must name.
        key: The key that the manifest must name.

    Raises:
        DamagedManifest: The text is not a manifest of this artefact.
        NewerSchema: A newer kdpipe wrote it.
    """
    try:
        fields = json.loads(text)
        schema = fields["schema_version"]
    except (ValueError, KeyError, TypeError):
        raise DamagedManifest("it is not JSON with a schema_version") from None
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
    """Return the contradiction in a manifest, in words; empty if there is none."""
    if not manifest.is_sealed():
        return "its checksum does not match"
    if (manifest.stage, manifest.key) != (stage, key):
        return f"it is the manifest of {manifest.stage}/{manifest.key}"
    if manifest.key != sha256_of(manifest.key_parts):
        return "its key does not match its parts"
    if manifest.digest != content_digest({path: entry["sha256"] for path, entry in manifest.files.items()}):
        return "its digest does not match its files"
    for path in manifest.files:
        parts = PurePosixPath(path).parts
        if not parts or parts[0] == "/" or ".." in parts or str(PurePosixPath(*parts)) != path:
            return f"it names a file outside the artefact ({path!r})"
    return ""


def find_damage(folder: Path, manifest: Manifest, digest: Callable[[Path], str]) -> Damage | None:
    """Return the first file of an artefact that is missing or changed, or None.

    A file that the manifest does not list is not part of the artefact and is ignored.

    Args:
        folder: The artefact's folder.
        manifest: Its manifest.
        digest: Returns the SHA-256 of a file: a cached one (only `stat` is called), or one read now.

    Raises:
        OSError: A file cannot be read.
    """
    for path, entry in manifest.files.items():
        file = folder / path
        try:
            status = file.lstat()
            if not stat.S_ISREG(status.st_mode):
                return Damage(path, entry["sha256"], "not a regular file")
            sha256 = digest(file)
        except (FileNotFoundError, NotADirectoryError):
            return Damage(path, entry["sha256"], None)
        if sha256 != entry["sha256"]:
            return Damage(path, entry["sha256"], sha256)
    return None


def list_files(folder: Path) -> dict[str, Path]:
    """Return the files below a folder by relative path, sorted.

    Raises:
        ValueError: There is a symbolic link, a hard link or anything else that is not a regular file of its
            own. Its content could change without the store.
    """
    files = {}
    for path in _walk(folder):
        status = path.lstat()
        name = path.relative_to(folder).as_posix()
        if stat.S_ISLNK(status.st_mode):
            raise ValueError(f"{name} is a symbolic link")
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{name} is not a regular file")
        if status.st_nlink > 1:
            raise ValueError(f"{name} is a hard link ({status.st_nlink} names)")
        if name == MANIFEST:
            raise ValueError(f"the name {MANIFEST} is the store's own")
        files[name] = path
    return dict(sorted(files.items()))


def jsonable(value: Any) -> Any:
    """Return a copy of a stage's metrics that JSON can represent; NaN and the infinities become null.

    Raises:
        TypeError: Something in it is not a JSON value.
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
