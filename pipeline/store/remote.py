"""A store that many machines share, behind any fsspec URL (`s3://bucket/prefix`, `file:///mnt/share`).

    PREFIX/kdpipe-remote.json                   marks the remote, with its schema_version
    PREFIX/artefacts/STAGE/KEY/artefact.json    manifests, as in a store
    PREFIX/files/AB/ABCD...                     files by SHA-256, each held once

Files are named by content, and the manifest is uploaded last. So neither an upload that was cut off nor two
that overlap appear as an artefact. Every pulled file is verified before the artefact is published.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import KdpipeError, UsageError
from pipeline.hashing import hash_file
from pipeline.store.disk import writing
from pipeline.store.manifest import MANIFEST, Damage, DamagedManifest, Manifest, NewerSchema, parse
from pipeline.store.store import Store

SCHEMA_VERSION = 1
MARKER = "kdpipe-remote.json"

_EXTRAS = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}

Note = Callable[[str], None]


def _no_note(text: str) -> None:
    pass


class Remote:
    """A shared store. A failure is noted once, and the run goes on without what failed.

    A failed push ends the pushes of a run, and a failed pull its pulls: a machine that may only read goes on
    pulling. Both end if the remote's marker cannot be read any more, because then the remote cannot be
    reached, and each further try may take minutes.

    Attributes:
        url: The URL without a user name and password.

    Raises:
        UsageError: The URL cannot be used.
    """

    def __init__(self, url: str) -> None:
        self.url = re.sub(r"//[^/@]*@", "//***@", url)
        self._may_pull = True
        self._may_push = True
        self._damaged: set[tuple[str, str]] = set()
        protocol = url.partition(":")[0] if "://" in url else "file"
        try:
            from fsspec.core import url_to_fs

            # Other file systems make folders on the way or have none.
            options = {"auto_mkdir": True} if protocol in ("file", "local") else {}
            self._fs, self._root = url_to_fs(url, **options)
        except ImportError as error:
            package = _EXTRAS.get(protocol, "fsspec")
            raise UsageError(
                f"The remote needs the Python package {package}",
                where=self.url,
                why=str(error),
                hint=f"pip install {package}",
            ) from error
        except Exception as error:
            raise self._unusable(error) from error

    def check(self) -> None:
        """Connect to the remote, and mark it if it is new.

        Raises:
            UsageError: The remote cannot be used.
        """
        marker = self._at(MARKER)
        text = json.dumps({"schema_version": SCHEMA_VERSION}).encode() + b"\n"
        try:
            if not self._fs.exists(marker):
                self._make_room(marker)
                self._fs.pipe_file(marker, text)
            schema = json.loads(self._fs.cat_file(marker))["schema_version"]
        except Exception as error:  # each backend has its own family of errors
            raise self._unusable(error) from error
        if schema != SCHEMA_VERSION:
            raise UsageError(
                "The remote was written by another version of kdpipe",
                where=self.url,
                why=f"its schema_version is {schema}; this kdpipe reads {SCHEMA_VERSION}",
                hint="use that version of kdpipe, or name another remote with --remote",
            )

    def pull(self, stage: str, key: str, store: Store, note: Note = _no_note) -> bool:
        """Fetch an artefact into the store, which must not have it yet.

        A damaged artefact is refused; `push` will replace it.

        Args:
            stage: The artefact's stage.
            key: The artefact's key.
            store: Where to put it.
            note: Receives one line for each problem.

        Returns:
            Whether the artefact was fetched.

        Raises:
            KdpipeError: The store cannot be written.
        """
        if not self._may_pull:
            return False
        try:
            manifest = self._manifest(stage, key)
        except NewerSchema as error:
            note(f"remote artefact {stage}/{key} was {error} and is ignored")
            return False
        except DamagedManifest as error:
            self._damaged.add((stage, key))
            note(f"remote artefact {stage}/{key} is damaged and was refused: {MANIFEST}: {error}")
            return False
        except Exception as error:
            self._stop_pulling(error, note)
            return False
        if manifest is None:
            return False
        with store.scratch() as folder:
            for path, entry in manifest.files.items():
                target = folder / path
                with writing(store.root):
                    target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    self._fs.get_file(self._file(entry["sha256"]), str(target))
                    sha256 = hash_file(target)
                except FileNotFoundError:
                    sha256 = ""
                except Exception as error:
                    self._stop_pulling(error, note)
                    return False
                if sha256 != entry["sha256"]:
                    self._damaged.add((stage, key))
                    damage = Damage(path, entry["sha256"], sha256 or None)
                    note(f"remote artefact {stage}/{key} is damaged and was refused: {damage}")
                    return False
            store.place(folder, manifest)
        return True

    def push(self, stage: str, key: str, store: Store, note: Note = _no_note) -> bool:
        """Upload an artefact of the store unless the remote has it.

        Args:
            stage: The artefact's stage.
            key: The artefact's key.
            store: Where it is.
            note: Receives one line for each problem.

        Returns:
            Whether the artefact was uploaded.

        Raises:
            KdpipeError: The store cannot be read.
        """
        if not self._may_push:
            return False
        repairing = (stage, key) in self._damaged
        try:
            if not repairing and self._fs.exists(self._manifest_path(stage, key)):
                return False
            if damage := store.verify(stage, key):
                note(f"artefact {stage}/{key} was not pushed: {damage}")
                return False
            folder = store.artefact_path(stage, key)
            manifest = parse((folder / MANIFEST).read_bytes(), stage, key)
            for path, entry in manifest.files.items():
                self._upload(folder / path, self._file(entry["sha256"]), entry, again=repairing)
            self._put(folder / MANIFEST, self._manifest_path(stage, key))
        except KdpipeError:
            raise
        except Exception as error:
            self._stop_pushing(error, note)
            return False
        self._damaged.discard((stage, key))
        return True

    def _upload(self, source: Path, target: str, entry: Mapping[str, Any], *, again: bool) -> None:
        if not again:
            # An upload that was cut off has another size: a file of the right name and size is complete.
            with contextlib.suppress(FileNotFoundError):
                if self._fs.info(target)["size"] == entry["size"]:
                    return
        self._put(source, target)

    def _put(self, source: Path, target: str) -> None:
        self._make_room(target)
        self._fs.put_file(str(source), target)

    def _make_room(self, target: str) -> None:
        # Object stores have no folders: `makedirs` would make a bucket.
        if not _is_object_store(self._fs.protocol):
            self._fs.makedirs(self._fs._parent(target), exist_ok=True)

    def _manifest(self, stage: str, key: str) -> Manifest | None:
        try:
            text = self._fs.cat_file(self._manifest_path(stage, key))
        except FileNotFoundError:
            return None
        return parse(text, stage, key)

    def _manifest_path(self, stage: str, key: str) -> str:
        return self._at(f"artefacts/{stage}/{key}/{MANIFEST}")

    def _file(self, sha256: str) -> str:
        return self._at(f"files/{sha256[:2]}/{sha256}")

    def _at(self, path: str) -> str:
        return f"{self._root.rstrip('/')}/{path}"

    def _stop_pulling(self, error: Exception, note: Note) -> None:
        self._may_pull = False
        self._note_failure("pull", error, note)

    def _stop_pushing(self, error: Exception, note: Note) -> None:
        self._may_push = False
        self._note_failure("push", error, note)

    def _note_failure(self, verb: str, error: Exception, note: Note) -> None:
        if self._is_reachable():
            note(
                f"remote {self.url}: the {verb} fails ({_summary(error)}); this run goes on without {verb}ing"
            )
        else:
            self._may_pull = self._may_push = False
            note(f"remote {self.url} fails ({_summary(error)}); this run goes on without it")

    def _is_reachable(self) -> bool:
        try:
            self._fs.cat_file(self._at(MARKER))
        except Exception:  # each backend has its own family of errors
            return False
        return True

    def _unusable(self, error: Exception) -> UsageError:
        return UsageError(
            "The remote cannot be used",
            where=self.url,
            why=_summary(error),
            hint="correct the URL or its credentials, or leave out --remote",
        )


def _is_object_store(protocol: str | tuple[str, ...]) -> bool:
    names = {protocol} if isinstance(protocol, str) else set(protocol)
    return bool(names & _EXTRAS.keys())


def _summary(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip(": ").split("\n", 1)[0]
