"""The heartbeat rule: end a worker that falls silent, never one that makes progress.

A worker writes a beat after a step of its work: one JSON object a line, with its phase and how much of it
is done. The process that started it reads the beats and applies two limits (`Silence`):

* Work in steps (calls of a warm-up or of sampling, batches of images). After the first step of a phase, a
  worker is hung if it is silent for `step_s` longer than its slowest step so far.
* Work without steps (loading a model, building an engine), and the first step of a phase. CPU time that the
  worker uses counts as progress here, so a worker is hung if it neither beats nor computes for `load_s`.

Standard library only: the program for devices contains this module too. Read `Heartbeat` first (the rule),
then `Beats` (what a worker writes), then `follow` and `run_while_alive` (what its parent does).
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

LOOK_S = 1.0
"""How often a parent checks a silent worker."""

COUNTED_S = 5.0
"""The most that the time between two checks counts: a parent that was suspended has observed no silence."""

CPU_STEP_S = 0.5
"""CPU time that counts as progress. Threads that only poll use less than this in `Silence.load_s`."""

BEAT_EVERY_S = 1.0
"""Least time between two beats of a timed phase, so that they do not affect the measurement."""


@dataclass(frozen=True)
class Silence:
    """How long a worker may be silent.

    Attributes:
        step_s: The limit in work with steps, in seconds.
        load_s: The limit in work without steps, in seconds.
    """

    step_s: float = 60.0
    load_s: float = 600.0


@dataclass(frozen=True)
class Beat:
    """The progress of a worker.

    Attributes:
        phase: The name of the phase.
        done: How much of the phase is done.
        total: How much there is; 0 if the phase has no steps.
        unit: The unit of `done` and `total`.
        detail: Which part of the phase.
        by_cpu: Whether CPU time counts as progress throughout, because the steps take very different times.
    """

    phase: str
    done: float = 0.0
    total: float = 0.0
    unit: str = ""
    detail: str = ""
    by_cpu: bool = False

    def words(self) -> str:
        """Return the phase and its progress: `accuracy, 640 of 50,000 images`."""
        parts = [self.phase]
        if self.total:
            parts.append(f"{self.done:,.4g} of {self.total:,.4g} {self.unit}".rstrip())
            if self.unit != "s":
                parts[-1] = f"{self.done:,.0f} of {self.total:,.0f} {self.unit}".rstrip()
        return ", ".join([*parts, self.detail] if self.detail else parts)

    def line(self) -> str:
        """Return the beat as a line of JSON, without the line break."""
        return json.dumps({"beat": asdict(self)})


def beat_of(line: bytes | str) -> Beat | None:
    """Return the beat in a line; None if the line is something else."""
    with suppress(ValueError, TypeError, KeyError):
        return Beat(**json.loads(line)["beat"])
    return None


class Hung(Exception):  # noqa: N818 - a state of the worker, not a fault of this code
    """A worker fell silent. The text has the phase and the time."""


class Heartbeat:
    """The rule for one worker. Times are those of a monotonic clock, in seconds.

    Attributes:
        silence: The limits.
        last: The last beat.
        silent_s: The time since the last progress.
        slowest_s: The longest time so far between two beats of the same phase.

    Example:
        heartbeat = Heartbeat(Silence(step_s=60.0), now=time.monotonic())
        heartbeat.beat(Beat("accuracy", 64, 10_000, "images"), time.monotonic())
        heartbeat.look(time.monotonic(), cpu_s=None)
        if heartbeat.hung: ...
    """

    def __init__(self, silence: Silence, now: float) -> None:
        self.silence = silence
        self.last = Beat("starting")
        self.silent_s = 0.0
        self.slowest_s = 0.0
        self._since_beat_s = 0.0
        self._stepped = False
        self._counted_until = now
        self._cpu_s = 0.0

    def beat(self, beat: Beat, now: float) -> None:
        """Take a beat. A beat that equals the last one is not progress.

        Args:
            beat: The beat.
            now: The time.
        """
        self._count(now)
        if beat == self.last:
            return
        if beat.phase == self.last.phase:
            self._stepped = True
            self.slowest_s = max(self.slowest_s, self._since_beat_s)
        else:
            self._stepped = bool(beat.done)
        self.last = beat
        self.silent_s = self._since_beat_s = 0.0

    def look(self, now: float, cpu_s: float | None) -> None:
        """Count the silence until now.

        Args:
            now: The time.
            cpu_s: CPU seconds that the worker has used so far; needed only if `counts_cpu`. None if this
                machine does not report them: then silence in work without steps has no limit.
        """
        self._count(now)
        if not self.counts_cpu:
            return
        if cpu_s is None:
            self.silent_s = 0.0
        elif cpu_s < self._cpu_s:  # a part of the worker has ended
            self._cpu_s = cpu_s
        elif cpu_s - self._cpu_s >= CPU_STEP_S:
            self.silent_s, self._cpu_s = 0.0, cpu_s

    def restart(self, now: float) -> None:
        """Forget the silence so far: the worker was waiting for its parent."""
        self._counted_until, self.silent_s, self._since_beat_s = now, 0.0, 0.0

    @property
    def counts_cpu(self) -> bool:
        """Return whether CPU time counts as progress now."""
        return self.last.by_cpu or not self._stepped

    @property
    def limit_s(self) -> float:
        """Return how long the worker may be silent now, in seconds."""
        return self.silence.load_s if self.counts_cpu else self.silence.step_s + self.slowest_s

    @property
    def hung(self) -> bool:
        """Return whether the worker has been silent for too long."""
        return self.silent_s > self.limit_s

    def words(self) -> str:
        """Return what the worker was doing and how long it has been silent, in words."""
        if self.counts_cpu:
            return f"{self.last.words()}: no progress and no CPU time used for {self.silent_s:.0f} s"
        slowest = f"its slowest step before took {self.slowest_s:.1f} s"
        return f"{self.last.words()}: silent for {self.silent_s:.0f} s, {slowest}"

    def _count(self, now: float) -> None:
        passed_s = min(max(now - self._counted_until, 0.0), COUNTED_S)
        self.silent_s += passed_s
        self._since_beat_s += passed_s
        self._counted_until = now


class Beats:
    """Writes the beats of a worker.

    Args:
        write: Writes one line, given with its line break.
    """

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._beat = Beat("starting")
        self._every_s, self._due = 0.0, 0.0

    def phase(
        self,
        name: str,
        total: float = 0.0,
        unit: str = "",
        detail: str = "",
        *,
        by_cpu: bool = False,
        every_s: float = BEAT_EVERY_S,
    ) -> None:
        """Begin a phase.

        Args:
            name: The name of the phase.
            total: How much there is to do; 0 if the phase has no steps.
            unit: The unit of `total`.
            detail: Which part of the phase.
            by_cpu: Whether CPU time counts as progress throughout.
            every_s: Least time between two beats of the phase, in seconds.
        """
        self._beat, self._every_s = Beat(name, 0.0, total, unit, detail, by_cpu), every_s
        self._send()

    def step(self, done: float, total: float | None = None, detail: str | None = None) -> None:
        """Report a step. Cheap to call: it writes a beat for the first step, then when one is due.

        Args:
            done: How much of the phase is done.
            total: How much there is; None if that has not changed.
            detail: Which part of the phase; None if that has not changed.
        """
        if time.monotonic() < self._due and self._beat.done:
            return
        total = self._beat.total if total is None else total
        detail = self._beat.detail if detail is None else detail
        self._beat = replace(self._beat, done=done, total=total, detail=detail)
        self._send()

    def _send(self) -> None:
        self._write(self._beat.line() + "\n")
        self._due = time.monotonic() + self._every_s


ProgressCallback = Callable[[float, float], object]
"""Takes how much of the work is done, and how much there is, as far as known: `Beats.step`."""


def ignore_progress(_done: float, _total: float) -> None:
    """Do nothing: the progress callback of work without a listener."""


def follow(process: subprocess.Popen[bytes], heartbeat: Heartbeat) -> Generator[bytes, None, None]:
    """Yield the lines of a worker's standard output as they come, and pass its beats to the heartbeat.

    The caller ends the process, also after Hung.

    Args:
        process: The worker; its standard output is a pipe.
        heartbeat: The rule for this worker.

    Yields:
        Each line without its line break, beats included.

    Raises:
        Hung: The worker fell silent.
    """
    assert process.stdout is not None
    handle, rest = process.stdout.fileno(), b""
    with selectors.DefaultSelector() as selector:
        selector.register(handle, selectors.EVENT_READ)
        while True:
            if selector.select(LOOK_S):
                data = os.read(handle, 1 << 16)
                *lines, rest = (rest + data).split(b"\n")
                if not data and rest:
                    lines = [rest]
                for line in lines:
                    beat = beat_of(line)
                    if beat:
                        heartbeat.beat(beat, time.monotonic())
                    yield line
                if not data:
                    return
            judge(heartbeat, process.pid)


def judge(heartbeat: Heartbeat, pid: int) -> None:
    """Check a worker now.

    Args:
        heartbeat: The rule for this worker.
        pid: The worker's process id.

    Raises:
        Hung: It has been silent for too long.
    """
    heartbeat.look(time.monotonic(), cpu_seconds(pid) if heartbeat.counts_cpu else None)
    if heartbeat.hung:
        raise Hung(heartbeat.words())


def run_while_alive(
    command: Sequence[str],
    *,
    doing: str,
    silence: Silence | None = None,
    cwd: str | Path | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program that writes no beats; end it if it uses no CPU time for too long.

    Args:
        command: The program and its arguments.
        doing: The phase, for the text of Hung.
        silence: The limits; only `load_s` applies.
        cwd: The folder that it starts in.
        env: Its environment.

    Returns:
        The exit code and the output; bytes that are not text are replaced.

    Raises:
        Hung: It used no CPU time for too long. The process has ended.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=cwd, env=env and dict(env)
        )
        heartbeat = Heartbeat(silence or Silence(), time.monotonic())
        heartbeat.last = Beat(doing)
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(LOOK_S)
                    break
                judge(heartbeat, process.pid)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        return subprocess.CompletedProcess(list(command), process.returncode, _text(out), _text(err))


def cpu_seconds(pid: int) -> float | None:
    """Return the CPU time of a process and its descendants in seconds; None if it is not reported."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2]
        ticks = sum(int(field) for field in fields.split()[11:15])  # utime, stime, cutime, cstime
        seconds: float = ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return None
    with suppress(OSError):  # a kernel without the list of children
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text(encoding="ascii").split():
                seconds += cpu_seconds(int(child)) or 0.0
    return seconds


def _text(file: IO[Any]) -> str:
    file.seek(0)
    content: bytes = file.read()
    return content.decode(errors="replace")
