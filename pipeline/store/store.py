"""The store: artefacts by key, published whole or not at all, and what lies beside them.

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
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Found:
    """What lies at an artefact's place: a whole artefact, a damaged one, one in a newer format
    (`newer` is its schema), or nothing."""

    manifest: Manifest | None = None
    damage: Damage | None = None
    newer: int | None = None


class Store:
    """A folder of artefacts. Making the object touches nothing; the first write makes the folder."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root).absolute()
        self.digests = DigestMemo(self.root / "digests.sqlite")
        self._made: list[Path] = []
        self._use: int | None = None

    # Reading

    def artefact_path(self, stage: str, key: str) -> Path:
        return self.root / "artefacts" / stage / key

    def work_path(self, stage: str, key: str) -> Path:
        return self.root / "work" / f"{stage}-{key}"

    def check(self) -> None:
        """Raises UsageError if the folder is there but is no store that this kdpipe can use."""
        marker.check(self.root)

    def inspect(self, stage: str, key: str) -> Found:
        """What lies at an artefact's place, judged by a stat walk; changes nothing."""
        return self._judge(stage, key, self.digests.of)

    def find(self, stage: str, key: str) -> Manifest | None:
        """The artefact's manifest if it is whole; a damaged artefact is set aside."""
        found = self.inspect(stage, key)
        if found.damage:
            self.set_aside(stage, key)
        return found.manifest

    def verify(self, stage: str, key: str) -> Damage | None:
        """Reads every file of an artefact anew; what is wrong with it, or None."""
        found = self._judge(stage, key, self.digests.fresh)
        if found.manifest:
            return None
        return found.damage or Damage(MANIFEST, None, "it is missing")

    def manifests(self, stage: str) -> list[Manifest]:
        """Every manifest of a stage that can be read, the newest last; files are not looked at."""
        found = []
        for folder in children(self.root / "artefacts" / stage):
            try:
                found.append(parse((folder / MANIFEST).read_bytes(), stage, folder.name))
            except (OSError, DamagedManifest, NewerSchema):
                continue
        return sorted(found, key=lambda manifest: manifest.created)

    def newest(self, stage: str, profile: Mapping[str, str]) -> Manifest | None:
        """The newest earlier artefact of a stage: this profile's own if there is one (by path, then
        by name), else anyone's."""

        def nearness(manifest: Manifest) -> tuple[bool, bool, str]:
            made_for = manifest.profile
            same_path = made_for.get("path") == profile["path"]
            return same_path, made_for.get("name") == profile["name"], manifest.created

        return max(self.manifests(stage), key=nearness, default=None)

    # Writing

    def prepare(self) -> None:
        """Makes the folder a store if it is none yet, and tells `clean` that it is in use."""
        self.check()
        with writing(self.root):
            self._folder()
            if self._use is None:
                self._use = marker.use(self.root)

    def release(self) -> None:
        """The end of a run: the store is not in use any more."""
        if self._use is not None:
            os.close(self._use)
            self._use = None
        self._made.clear()
        self.digests.close()

    def undo(self) -> None:
        """Takes away the empty folders that this object made: the whole store if nothing else is
        in it and nobody else uses it."""
        for folder in reversed(self._made):
            if folder == self.root and self._is_bare() and self._is_sole_use():
                self.digests.close()
                self.digests.path.unlink(missing_ok=True)
                (self.root / marker.MARKER).unlink(missing_ok=True)
            try:
                folder.rmdir()
            except OSError:
                continue  # something lies in it, or it is gone
        self._made.clear()

    @contextmanager
    def lock(self, stage: str, key: str, waiting: Callable[[str], None]) -> Iterator[None]:
        """Only one process at a time makes an artefact; see `pipeline.store.locks.hold`."""
        with ExitStack() as held:
            with writing(self.root):
                held.enter_context(hold(self._folder("locks") / f"{stage}-{key}.lock", waiting))
            yield

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """An empty folder on the store's disk, gone afterwards (or swept up if we are killed)."""
        with ExitStack() as held:
            with writing(self.root):
                folder = self._folder("tmp") / own_name()
                # The lock comes before the folder: no other process ever sees the folder without it.
                held.enter_context(hold(lock_of(folder), lambda holder: None))
                folder.mkdir()
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def open_work(self, stage: str, key: str, *, anew: bool = False) -> Path:
        """The folder for a stage's checkpoints; `anew` forgets those of an earlier run."""
        folder = self.work_path(stage, key)
        with writing(self.root):
            if anew and folder.exists():
                shutil.rmtree(folder)
            return self._folder("work", folder.name)

    def close_work(self, stage: str, key: str, *, done: bool) -> None:
        """Deletes the checkpoints of a stage that is done; else keeps them if there are any."""
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
        """Makes a scratch folder's files an artefact, by one atomic rename.

        If the artefact is there already, that one stays and its manifest is returned, unless
        `replacing`. Raises StageError for links in the folder and for metrics that are no JSON.
        """
        try:
            files = list_files(folder)
            plain_metrics = jsonable(metrics)
        except (ValueError, TypeError) as error:
            raise StageError(
                f"Stage {stage} left something that cannot be kept",
                where=f"stage {stage}",
                why=str(error),
                hint="this is a fault of the stage; please report it",
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
        """Publishes a scratch folder that `manifest` is known to describe (just made, or pulled)."""
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
                there = self.inspect(manifest.stage, manifest.key).manifest
                if there and not replacing:
                    return there
                if there:
                    with self.scratch() as aside:
                        target.rename(aside)
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
        """Moves a damaged artefact to ROOT/damaged and tells where it lies now; None if it is gone."""
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
        """Keeps a traceback; returns where."""
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

    def _judge(self, stage: str, key: str, digest: Callable[[Path], str]) -> Found:
        folder = self.artefact_path(stage, key)
        try:
            manifest = parse((folder / MANIFEST).read_bytes(), stage, key)
            damage = find_damage(folder, manifest, digest)
        except (FileNotFoundError, NotADirectoryError):
            return Found(damage=Damage(MANIFEST, None, "it is missing")) if folder.exists() else Found()
        except DamagedManifest as error:
            return Found(damage=error.damage)
        except NewerSchema as error:
            return Found(newer=error.schema_version)
        except PermissionError as error:
            raise refusal(error, self.root) from error
        except OSError as error:  # a disk that cannot read its blocks any more
            return Found(damage=Damage(Path(error.filename or folder).name, None, str(error)))
        return Found(damage=damage) if damage else Found(manifest=manifest)

    def _folder(self, *parts: str) -> Path:
        """A folder of the store, made with all that it needs; what was made is remembered."""
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
            self._made.append(each)

    def _is_bare(self) -> bool:
        return {path.name for path in children(self.root)} <= {marker.MARKER, self.digests.path.name}

    def _is_sole_use(self) -> bool:
        return self._use is None or marker.is_sole_use(self._use)
