"""The store: artefacts by key, published whole or not at all, and their checkpoints, locks and logs.

store.json                  marks the folder as a store, with its schema_version
artefacts/STAGE/KEY/        an artefact's files and its manifest, artefact.json
work/STAGE-KEY/             checkpoints of a stage that has not finished
tmp/PID.START.RANDOM.HOST/  what a stage is writing now, named after its process; the file of the same
                            name with .lock is held until the folder is published or deleted
locks/STAGE-KEY.lock        held while an artefact is being made
damaged/, logs/             artefacts set aside; tracebacks of crashes
digests.sqlite              file digests remembered (`pipeline.store.digests`)
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.errors import StageError
from pipeline.hashing import hash_file
from pipeline.store import marker
from pipeline.store.digests import DigestMemo
from pipeline.store.disk import children, flush, flush_tree, refusal, writing
from pipeline.store.keys import content_digest, sha256_of
from pipeline.store.locks import discard, hold, lock_of, own_name, owner_of, scratch_folders, seize
from pipeline.store.manifest import (
    MANIFEST,
    Damage,
    DamagedManifest,
    Manifest,
    NewerSchema,
    find_damage,
    jsonable,
    list_files,
    parse,
)


@dataclass(frozen=True)
class Inspection:
    """The state of the folder of an artefact. At most one attribute is set; none if there is no folder.

    Attributes:
        manifest: The manifest of a whole artefact.
        damage: The damage of a damaged artefact.
        newer: The schema version of an artefact in a newer format.
    """

    manifest: Manifest | None = None
    damage: Damage | None = None
    newer: int | None = None


class Store:
    """A folder of artefacts. Constructing the object touches nothing; the first write makes the folder.

    Attributes:
        root: The absolute path of the folder.
        digests: The cached digests of files.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root).absolute()
        self.digests = DigestMemo(self.root / "digests.sqlite")
        self._created_folders: list[Path] = []
        self._use_descriptor: int | None = None

    # Reading

    def artefact_path(self, stage: str, key: str) -> Path:
        """Return the folder of an artefact, whether it exists or not."""
        return self.root / "artefacts" / stage / key

    def work_path(self, stage: str, key: str) -> Path:
        """Return the folder for the checkpoints of a stage, whether it exists or not."""
        return self.root / "work" / f"{stage}-{key}"

    def check(self) -> None:
        """Check that the folder is a store that this kdpipe can use, or can become one.

        Raises:
            UsageError: It cannot be used.
        """
        marker.check(self.root)

    def inspect(self, stage: str, key: str) -> Inspection:
        """Return the state of an artefact; files with a cached digest are not read. Change nothing.

        Raises:
            KdpipeError: The folder may not be read.
        """
        return self._inspect(stage, key, self.digests.of)

    def find(self, stage: str, key: str) -> Manifest | None:
        """Return the artefact's manifest if it is whole, else None; set a damaged artefact aside."""
        inspection = self.inspect(stage, key)
        if inspection.damage:
            self.set_aside(stage, key)
        return inspection.manifest

    def verify(self, stage: str, key: str) -> Damage | None:
        """Read every file of an artefact, and return its damage; None if it is whole."""
        inspection = self._inspect(stage, key, self.digests.fresh)
        if inspection.manifest:
            return None
        return inspection.damage or Damage(MANIFEST, None, "it is missing")

    def manifests(self, stage: str) -> list[Manifest]:
        """Return every readable manifest of a stage, the newest last. Do not check the files."""
        manifests = []
        for folder in children(self.root / "artefacts" / stage):
            try:
                manifests.append(parse((folder / MANIFEST).read_bytes(), stage, folder.name))
            except (OSError, DamagedManifest, NewerSchema):
                continue
        return sorted(manifests, key=lambda manifest: manifest.created)

    def newest(self, stage: str, profile: Mapping[str, str]) -> Manifest | None:
        """Return the manifest of the newest artefact of a stage, or None.

        Args:
            stage: The stage.
            profile: `path` and `name` of a profile. Artefacts of this path are preferred, then of this name,
                then those of any profile.
        """

        def nearness(manifest: Manifest) -> tuple[bool, bool, str]:
            same_path = manifest.profile.get("path") == profile["path"]
            return same_path, manifest.profile.get("name") == profile["name"], manifest.created

        return max(self.manifests(stage), key=nearness, default=None)

    # Writing

    def prepare(self) -> None:
        """Make the folder a store unless it is one, and keep `clean` out of it until `release`.

        Raises:
            KdpipeError: The folder cannot be used as a store.
        """
        self.check()
        with writing(self.root):
            self._folder()
            if self._use_descriptor is None:
                self._use_descriptor = marker.use(self.root)

    def release(self) -> None:
        """End the use of the store that `prepare` began."""
        if self._use_descriptor is not None:
            os.close(self._use_descriptor)
            self._use_descriptor = None
        self._created_folders.clear()
        self.digests.close()

    def undo(self) -> None:
        """Delete the empty folders that this object made.

        That is the whole store if nothing else is in it and no other process uses it.
        """
        for folder in reversed(self._created_folders):
            if folder == self.root and self._is_bare() and self._is_sole_use():
                self.digests.close()
                self.digests.path.unlink(missing_ok=True)
                (self.root / marker.MARKER).unlink(missing_ok=True)
            try:
                folder.rmdir()
            except OSError:
                continue  # it is not empty, or it is gone
        self._created_folders.clear()

    @contextmanager
    def lock(self, stage: str, key: str, waiting: Callable[[str], None]) -> Iterator[None]:
        """Hold the lock of an artefact during the block, so that only one process at a time makes it.

        Args:
            stage: The artefact's stage.
            key: The artefact's key.
            waiting: Called once for each other process that holds the lock, with its host and process in
                words.

        Raises:
            KdpipeError: The store cannot be written.
        """
        with ExitStack() as held:
            with writing(self.root):
                held.enter_context(hold(self._folder("locks") / f"{stage}-{key}.lock", waiting))
            yield

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Make an empty folder on the store's disk for the block, and delete it afterwards.

        If this process is killed, a later run deletes the folder.

        Raises:
            KdpipeError: The store cannot be written.
        """
        with ExitStack() as held:
            with writing(self.root):
                folder = self._folder("tmp") / own_name()
                # The lock comes before the folder: no other process ever sees the folder without it.
                held.enter_context(hold(lock_of(folder), lambda _holder: None))
                folder.mkdir()
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def open_work(self, stage: str, key: str, *, start_over: bool = False) -> Path:
        """Make the folder for a stage's checkpoints.

        Args:
            stage: The stage.
            key: The key of the artefact that it makes.
            start_over: Whether to delete the checkpoints of an earlier run.

        Raises:
            KdpipeError: The store cannot be written.
        """
        folder = self.work_path(stage, key)
        with writing(self.root):
            if start_over and folder.exists():
                shutil.rmtree(folder)
            return self._folder("work", folder.name)

    def close_work(self, stage: str, key: str, *, done: bool) -> None:
        """Delete the checkpoints of a stage that is done; otherwise delete only a folder without files."""
        folder = self.work_path(stage, key)
        if done or not any(files for _, _, files in os.walk(folder)):
            shutil.rmtree(folder, ignore_errors=True)

    def publish(
        self,
        folder: Path,
        *,
        stage: str,
        version: int,
        key_parts: Mapping[str, Any],
        inputs: Mapping[str, Mapping[str, str]],
        metrics: Mapping[str, Any],
        seconds: float,
        profile: Mapping[str, str],
        replacing: bool = False,
    ) -> Manifest:
        """Publish a scratch folder's files as an artefact, by one atomic rename.

        Args:
            folder: The scratch folder.
            stage: The stage that made the files.
            version: The version of that stage.
            key_parts: Everything that the key depends on.
            inputs: By stage name, `key` and `digest` of the artefact that was read.
            metrics: The metrics of the stage.
            seconds: How long making it took.
            profile: `path` and `name` of the profile.
            replacing: Whether to replace an artefact of this key. Otherwise an existing one stays.

        Returns:
            The manifest of the artefact that the store now has.

        Raises:
            StageError: The folder contains a link, or the metrics are not JSON.
            KdpipeError: The store cannot be written.
        """
        try:
            files = list_files(folder)
            plain_metrics = jsonable(metrics)
        except (ValueError, TypeError) as error:
            raise StageError(
                f"Stage {stage} wrote files or metrics that cannot be stored",
                where=f"stage {stage}",
                why=str(error),
                hint="this is an error in the stage; please report it",
            ) from error
        with writing(self.root):
            entries: dict[str, dict[str, Any]] = {
                name: {"sha256": hash_file(path), "size": path.stat().st_size} for name, path in files.items()
            }
        manifest = Manifest(
            stage=stage,
            version=version,
            key=sha256_of(key_parts),
            key_parts=key_parts,
            digest=content_digest({name: entry["sha256"] for name, entry in entries.items()}),
            files=entries,
            inputs=inputs,
            metrics=plain_metrics,
            created=datetime.now(UTC).isoformat(timespec="microseconds"),
            seconds=round(seconds, 6),
            host=os.uname().nodename,
            kdpipe=__version__,
            profile=profile,
        )
        return self.place(folder, manifest.sealed(), replacing=replacing)

    def place(self, folder: Path, manifest: Manifest, *, replacing: bool = False) -> Manifest:
        """Publish a scratch folder whose manifest is known to be right (just made, or pulled and verified).

        Args:
            folder: The scratch folder.
            manifest: The sealed manifest of its files.
            replacing: Whether to replace an artefact of this key. Otherwise an existing one stays.

        Returns:
            The manifest of the artefact that the store now has.

        Raises:
            KdpipeError: The store cannot be written.
        """
        with writing(self.root):
            (folder / MANIFEST).write_text(manifest.as_text(), encoding="utf-8")
            flush_tree(folder)
            shelf = self._folder("artefacts", manifest.stage)
            target = shelf / manifest.key
            try:
                folder.rename(target)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
                existing = self.inspect(manifest.stage, manifest.key).manifest
                if existing and not replacing:
                    return existing
                if existing:
                    with self.scratch() as discarded:
                        target.rename(discarded)
                        folder.rename(target)
                else:
                    self.set_aside(manifest.stage, manifest.key)
                    folder.rename(target)
            flush(shelf)
            for name, entry in manifest.files.items():
                self.digests.remember(target / name, entry["sha256"])
            self.digests.save()
        return manifest

    def set_aside(self, stage: str, key: str) -> Path | None:
        """Move a damaged artefact to ROOT/damaged.

        Returns:
            Its new path; None if the artefact is gone.

        Raises:
            KdpipeError: The store cannot be written.
        """
        source = self.artefact_path(stage, key)
        with writing(self.root):
            shelf = self._folder("damaged")
            target, count = shelf / f"{stage}-{key}", 1
            while target.exists():
                count += 1
                target = shelf / f"{stage}-{key}.{count}"
            try:
                source.rename(target)
            except FileNotFoundError:
                return None
        return target

    def write_log(self, stage: str, text: str) -> Path:
        """Write a traceback into the folder `logs`, and return its path.

        Raises:
            KdpipeError: The store cannot be written.
        """
        with writing(self.root):
            moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
            path = self._folder("logs") / f"{stage}-{moment}.log"
            path.write_text(text, encoding="utf-8", errors="backslashreplace")
        return path

    def sweep(self) -> list[Path]:
        """Delete the scratch folders whose lock is free and whose process is gone; return them."""
        swept = []
        for folder in scratch_folders(self.root / "tmp"):
            with seize(folder) as is_free:
                if not is_free:
                    continue
                owner = owner_of(folder)
                if not folder.exists():
                    discard(folder)  # a killed process left only its lock file
                elif owner and owner.is_gone():
                    discard(folder)
                    swept.append(folder)
        return swept

    def _inspect(self, stage: str, key: str, digest: Callable[[Path], str]) -> Inspection:
        folder = self.artefact_path(stage, key)
        try:
            manifest = parse((folder / MANIFEST).read_bytes(), stage, key)
            damage = find_damage(folder, manifest, digest)
        except (FileNotFoundError, NotADirectoryError):
            if not folder.exists():
                return Inspection()
            return Inspection(damage=Damage(MANIFEST, None, "it is missing"))
        except DamagedManifest as error:
            return Inspection(damage=error.damage)
        except NewerSchema as error:
            return Inspection(newer=error.schema_version)
        except PermissionError as error:
            raise refusal(error, self.root) from error
        except OSError as error:  # a disk that cannot read its blocks any more
            return Inspection(damage=Damage(Path(error.filename or folder).name, None, str(error)))
        return Inspection(damage=damage) if damage else Inspection(manifest=manifest)

    def _folder(self, *parts: str) -> Path:
        """Make a folder of the store, with its marker and parents; record what was made for `undo`."""
        if not (self.root / marker.MARKER).exists():
            self._make(self.root)
            marker.write(self.root)
        folder = self.root.joinpath(*parts)
        self._make(folder)
        return folder

    def _make(self, folder: Path) -> None:
        missing = []
        while not folder.is_dir():
            missing.append(folder)
            folder = folder.parent
        for each in reversed(missing):
            try:
                each.mkdir()
            except FileExistsError:
                if not each.is_dir():
                    raise
                continue  # another process was first
            self._created_folders.append(each)

    def _is_bare(self) -> bool:
        return {path.name for path in children(self.root)} <= {marker.MARKER, self.digests.path.name}

    def _is_sole_use(self) -> bool:
        return self._use_descriptor is None or marker.is_sole_use(self._use_descriptor)
