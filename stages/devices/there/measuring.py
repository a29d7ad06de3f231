"""One target measured on the device, in a process of its own; done once, however many calls ask for it.

The process that measures writes its beats into a file, because it outlives a link that broke. The call that
started it, or a later call that waits for it, reads them there and applies the heartbeat rule
(`pipeline.heartbeat`).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.errors import StageError
from pipeline.heartbeat import LOOK_S, Beat, Heartbeat, Hung, Silence, beat_of, cpu_seconds
from stages.devices.there.files import flush, inside, listing, root

LAST_LINES = 8

REPORT_EVERY_S = 5.0
"""The longest time between two beats to the host: they prove that the process that measures is watched."""

Report = Callable[[Beat], None]


def measure(request: dict[str, Any], report: Report) -> dict[str, Any]:
    """Measure a target into the folder `place`, or wait for the process that does so already.

    A link that broke leaves the measurement running: the next request waits for it and takes its result.
    The process that measures holds the lock as well, so no second one begins beside it if this process dies.

    Args:
        request: see `stages.devices.requests`; `silence`: the limits of the heartbeat, if not the defaults.
        report: takes the beats, often enough to prove that the process is watched.

    Returns:
        The `files` of the result: `sha256` and `size` by path.

    Raises:
        StageError: the process hung, or ended without a result; with its last lines of output.
    """
    folder = root(request)
    place = inside(folder, request["place"])
    place.mkdir(parents=True, exist_ok=True)
    watcher = _Watcher(place, Silence(**request.get("silence") or {}), report)
    with place.with_suffix(".lock").open("ab") as file:
        try:
            watcher.wait(lambda: _try_lock(file.fileno()))
        except Hung as why:
            _end_other(watcher, place)
            raise _hung(request["target"], str(why)) from None
        if not (place / "result.json").is_file():
            _run_worker(folder, place, request, file.fileno(), watcher)
    return {"files": listing(place)}


class _Watcher:
    """Reads the beats of the process that measures into `place`, passes them on, and judges them."""

    def __init__(self, place: Path, silence: Silence, report: Report) -> None:
        self.file = place.with_suffix(".beats")
        self._silence, self._report = silence, report
        self.begin()

    def begin(self) -> None:
        """Start with a new file of beats."""
        self.pid: int | None = None
        self._heartbeat = Heartbeat(self._silence, time.monotonic())
        self._read, self._reported, self._reported_at = 0, Beat(""), 0.0

    def wait(self, ended: Callable[[], bool]) -> None:
        """Watch until `ended`, which waits for up to `LOOK_S`. Raises Hung."""
        while not ended():
            for line in self._lines():
                self._read_line(line)
            now = time.monotonic()
            # Without a process id no CPU time is known: which process holds the lock is not known either.
            self._heartbeat.look(now, 0.0 if self.pid is None else cpu_seconds(self.pid))
            if self._heartbeat.hung:
                raise Hung(self._heartbeat.words())
            if self._heartbeat.last != self._reported or now - self._reported_at >= REPORT_EVERY_S:
                self._reported, self._reported_at = self._heartbeat.last, now
                self._report(self._reported)

    def _read_line(self, line: str) -> None:
        beat = beat_of(line)
        if beat:
            self._heartbeat.beat(beat, time.monotonic())
        else:
            with contextlib.suppress(ValueError, TypeError, KeyError):
                self.pid = int(json.loads(line)["pid"])

    def _lines(self) -> list[str]:
        """Return the whole lines that were written since the last look."""
        try:
            with self.file.open("rb") as stream:
                if stream.seek(0, os.SEEK_END) < self._read:  # another process has begun a new file
                    self.begin()
                stream.seek(self._read)
                whole, end, _ = stream.read().rpartition(b"\n")
        except OSError:
            return []
        self._read += len(whole + end)
        return whole.decode(errors="replace").splitlines()


def _run_worker(folder: Path, place: Path, request: dict[str, Any], lock: int, watcher: _Watcher) -> None:
    file = place.with_suffix(".request.json")
    named = {name: request[name] for name in ("bundle", "onnx", "images", "timings")}
    paths = {name: str(inside(folder, path)) if path else None for name, path in named.items()}
    paths |= {"output": str(place), "beats": str(watcher.file)}
    file.write_text(json.dumps({**request, **paths}), encoding="utf-8")
    log = place / "log.txt"
    watcher.file.write_bytes(b"")
    watcher.begin()
    open_while_it_runs, end_of_worker = os.pipe()
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(  # noqa: S603 - this very program
                [sys.executable, sys.argv[0], "work", str(file)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(lock, end_of_worker),
                start_new_session=True,  # so that it is ended with every process that it has started
            )
        finally:
            os.close(end_of_worker)
        watcher.pid = process.pid
        try:
            watcher.wait(lambda: bool(select.select([open_while_it_runs], [], [], LOOK_S)[0]))
        except BaseException as error:
            _kill(process.pid)
            if isinstance(error, Hung):
                raise _hung(request["target"], str(error)) from None
            raise
        finally:
            os.close(open_while_it_runs)
            status = process.wait()
            watcher.file.unlink(missing_ok=True)
    unfinished = place / "unfinished.json"
    if status or not unfinished.is_file():
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise StageError(
            f"The process that measured {request['target']} ended without a result",
            where=f"target {request['target']}",
            why=f"status {status}: " + ("\n".join(lines[-LAST_LINES:]) or "no output"),
            hint="fewer measure.batch_sizes need less memory; or leave the target out",
        )
    flush(unfinished)
    unfinished.replace(place / "result.json")


def _try_lock(lock: int) -> bool:
    """Return whether this process holds the lock now; wait a while if it does not."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        time.sleep(min(LOOK_S, 0.2))
        return False
    return True


def _end_other(watcher: _Watcher, place: Path) -> None:
    """End the process that measures into `place` for a call that has ended, and no other process."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{watcher.pid}/cmdline").read_bytes().split(b"\0")
        if watcher.pid and os.fsencode(place.with_suffix(".request.json")) in words:
            _kill(watcher.pid)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _hung(target: str, why: str) -> StageError:
    return StageError(
        f"Measuring {target} hung on the device",
        where=f"target {target}",
        why=why,
        hint="run the same command again; if it hangs again, leave the target out",
    )
