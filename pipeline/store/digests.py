"""Cache the SHA-256 of files by their `stat` values, so that a cached run only calls `stat`.

The cache compares inode, size, mtime and ctime, the times in nanoseconds. It compares ctime too, so that a
file that was written to and given its old mtime back is read again. A file that changed less than two seconds
ago is not cached: a coarse clock could hide a second change.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

from pipeline.hashing import hash_file

YOUNG_NS = 2_000_000_000
"""Age in nanoseconds below which a file's digest is not cached."""

_TABLE = """CREATE TABLE IF NOT EXISTS digests (
    folder BLOB, name BLOB, identity TEXT NOT NULL, sha256 TEXT NOT NULL,
    PRIMARY KEY (folder, name)) WITHOUT ROWID"""

_Folder = dict[str, tuple[str, str]]


class DigestMemo:
    """File digests, cached in one SQLite file. Nothing is written until `save`.

    If the SQLite file is missing, damaged or locked, the files are read again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._folders: dict[str, _Folder] = {}
        self._unsaved: dict[tuple[str, str], tuple[str, str]] = {}
        self._lock = threading.Lock()
        self._database: sqlite3.Connection | None = None
        self._opened = False

    def of(self, path: Path) -> str:
        """Return the file's SHA-256; read the file only if it may have changed.

        Raises:
            OSError: The file cannot be read.
        """
        name = _absolute(path)
        identity, _ = _identity(name)
        known = self._known(name)
        return known[1] if known and known[0] == identity else self.fresh(path)

    def fresh(self, path: Path) -> str:
        """Read the file now and return its SHA-256.

        Raises:
            OSError: The file cannot be read.
        """
        name = _absolute(path)
        before, changed_ns = _identity(name)
        sha256 = hash_file(name)
        if _identity(name)[0] == before and time.time_ns() - changed_ns > YOUNG_NS:
            self._remember(name, before, sha256)
        return sha256

    def remember(self, path: Path, sha256: str) -> None:
        """Cache a digest that the caller has just computed, of a file that no other process writes to.

        Raises:
            OSError: The file does not exist.
        """
        name = _absolute(path)
        self._remember(name, _identity(name)[0], sha256)

    def save(self) -> None:
        """Write the new digests. The folder must exist; a cache that cannot be written is not an error."""
        with self._lock:
            if not self._unsaved:
                return
            rows = [
                (os.fsencode(folder), os.fsencode(name), *entry)
                for (folder, name), entry in self._unsaved.items()
            ]
            try:
                self._write(rows)
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    return  # locked, read-only or full: next time
                self.path.unlink(missing_ok=True)
                self._write(rows)
            self._unsaved.clear()

    def prune(self) -> None:
        """Delete the digests of files in folders that no longer exist."""
        self.close()
        if not self.path.exists():
            return
        try:
            with closing(sqlite3.connect(self.path, timeout=1.0)) as database, database:
                folders = database.execute("SELECT DISTINCT folder FROM digests").fetchall()
                gone = [row for row in folders if not Path(os.fsdecode(row[0])).is_dir()]
                database.executemany("DELETE FROM digests WHERE folder = ?", gone)
        except sqlite3.DatabaseError:
            return

    def close(self) -> None:
        """Close the SQLite file; the next call of `of` opens it again."""
        with self._lock:
            if self._database is not None:
                self._database.close()
            self._database, self._opened = None, False
            self._folders.clear()
            for (folder, name), entry in self._unsaved.items():
                self._folders.setdefault(folder, {})[name] = entry

    def _known(self, path: str) -> tuple[str, str] | None:
        folder, name = os.path.split(path)
        with self._lock:
            entries = self._folders.get(folder)
            if entries is None:
                entries = self._folders[folder] = self._read(folder)
            return entries.get(name)

    def _remember(self, path: str, identity: str, sha256: str) -> None:
        folder, name = os.path.split(path)
        with self._lock:
            if folder not in self._folders:
                self._folders[folder] = self._read(folder)
            self._folders[folder][name] = (identity, sha256)
            self._unsaved[folder, name] = (identity, sha256)

    def _read(self, folder: str) -> _Folder:
        """Read the digests of a folder in one query, however many files it has."""
        try:
            if not self._opened:
                self._opened = True
                if self.path.exists():
                    uri = f"{self.path.absolute().as_uri()}?mode=ro"
                    self._database = sqlite3.connect(uri, uri=True, timeout=1.0, check_same_thread=False)
            if self._database is None:
                return {}
            rows = self._database.execute(
                "SELECT name, identity, sha256 FROM digests WHERE folder = ?", (os.fsencode(folder),)
            )
            return {os.fsdecode(name): (identity, sha256) for name, identity, sha256 in rows}
        except sqlite3.DatabaseError:
            return {}

    def _write(self, rows: list[tuple[bytes, bytes, str, str]]) -> None:
        with closing(sqlite3.connect(self.path, timeout=5.0)) as database, database:
            database.execute(_TABLE)
            database.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?, ?, ?)", rows)


def _absolute(path: Path) -> str:
    # Not Path: a data set of a million files is walked in seconds, not in a minute.
    return os.path.abspath(path)  # noqa: PTH100


def _identity(path: str) -> tuple[str, int]:
    """Return the `stat` values that change with the content, and when the file last changed, in ns."""
    stat = os.stat(path)  # noqa: PTH116 - as above
    identity = f"{stat.st_ino}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}"
    return identity, max(stat.st_mtime_ns, stat.st_ctime_ns)
