"""Owners and locks: processes identified beyond their id, and locks that end with their process."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from pipeline.store.disk import children

POLL_S = 0.1
SUFFIX = ".lock"

_held: set[int] = set()


@dataclass(frozen=True)
class Owner:
    """A process.

    Attributes:
        host: The host it runs on.
        pid: Its id.
        start: When it started, in the kernel's ticks, because ids are used again.
    """

    host: str
    pid: int
    start: str

    def is_gone(self) -> bool:
        """Return whether the process has certainly ended; False for a process of another host."""
        return self.host == os.uname().nodename and _start_ticks(self.pid) != self.start


def this_process() -> Owner:
    """Return the owner that this process is."""
    return Owner(host=os.uname().nodename, pid=os.getpid(), start=_start_ticks(os.getpid()) or "")


def own_name() -> str:
    """Return a new name for something that belongs to this process: PID.START.RANDOM.HOST."""
    owner = this_process()
    return f"{owner.pid}.{owner.start}.{os.urandom(6).hex()}.{owner.host}"


def owner_of(path: Path) -> Owner | None:
    """Return the process that a path is named after; None if `own_name` does not give such names."""
    pid, start, random, host = (path.name.split(".", 3) + [""] * 4)[:4]
    return Owner(host=host, pid=int(pid), start=start) if pid.isdigit() and random and host else None


@contextmanager
def hold(path: Path, waiting: Callable[[str], None]) -> Iterator[None]:
    """Hold a lock file during the block. The kernel releases it when this process ends, however it ends.

    Args:
        path: The lock file; it is deleted afterwards.
        waiting: Called once for each other process that holds the lock, with its host and process in words.
    """
    descriptor = _acquire(path, waiting)
    try:
        yield
    finally:
        # Unlinked while still held: a waiting process finds that its file is no longer the one at the
        # path, and takes the next one.
        if descriptor in _held:  # not in a forked child
            path.unlink(missing_ok=True)
            _held.discard(descriptor)
            os.close(descriptor)


def is_held(path: Path) -> bool:
    """Return whether a process holds the lock file `path` now."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not _try_lock(descriptor)
    finally:
        os.close(descriptor)


def lock_of(folder: Path) -> Path:
    """Return the lock file beside a scratch folder; the process that writes the folder holds it."""
    return folder.with_name(f"{folder.name}{SUFFIX}")


def scratch_folders(shelf: Path) -> list[Path]:
    """List the scratch folders in `shelf`, sorted; of a killed process only the lock file may be left."""
    folders = set()
    for path in children(shelf):
        if path.name.endswith(SUFFIX) and not path.is_dir():
            path = path.with_name(path.name.removesuffix(SUFFIX))
        if owner_of(path):
            folders.add(path)
    return sorted(folders)


@contextmanager
def seize(folder: Path) -> Iterator[bool]:
    """Take a scratch folder's lock if it is free, so that the folder can be judged and deleted.

    A process id means nothing in another container, even one of the same host name; the lock does.

    Yields:
        Whether no process holds the lock. True for a folder without a lock file, which an earlier version
        made: then only its name shows its owner.
    """
    path = lock_of(folder)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        yield True
        return
    except PermissionError:  # another user's
        yield False
        return
    try:
        yield _try_lock(descriptor) and _is_file_at(descriptor, path)
    finally:
        os.close(descriptor)


def discard(folder: Path) -> None:
    """Delete a scratch folder and its lock file, which the caller has seized or holds."""
    shutil.rmtree(folder, ignore_errors=True)
    if not folder.exists():
        lock_of(folder).unlink(missing_ok=True)


def _acquire(path: Path, waiting: Callable[[str], None]) -> int:
    reported_holder = ""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:  # another process has just tidied the empty folder away
            path.parent.mkdir(parents=True, exist_ok=True)
            continue
        try:
            if _try_lock(descriptor):
                if _is_file_at(descriptor, path):
                    _write_holder(descriptor)
                    _held.add(descriptor)
                    return descriptor
            else:
                holder = _read_holder(descriptor)
                if holder and holder != reported_holder:
                    reported_holder = holder
                    waiting(holder)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        time.sleep(POLL_S)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_file_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _write_holder(descriptor: int) -> None:
    started = datetime.now(UTC).isoformat(timespec="seconds")
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps({**asdict(this_process()), "started": started}).encode(), 0)


def _read_holder(descriptor: int) -> str:
    """Return the holder in words; empty if it has not yet written its host and process."""
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {holder['pid']} on {holder['host']}, since {holder['started']}"
    except (ValueError, KeyError, TypeError):
        return ""


def _start_ticks(pid: int) -> str | None:
    """Return when a process of this host started, in the kernel's ticks; None if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self/stat").exists():
            return None
        return _start_without_proc(pid)
    # The second field is the program's name in brackets and may contain blanks and brackets itself.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]


def _start_without_proc(pid: int) -> str | None:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""


def _release_in_child() -> None:
    """Close the locks in a forked worker: it must not hold them when its parent has been killed."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_release_in_child)
