"""The heartbeat rule: a worker that makes progress is never ended, one that falls silent is.

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
"""How often a parent looks at a silent worker."""

COUNTED_S = 5.0
"""Most that the time between two looks counts: a parent that was suspended itself has seen no silence."""

CPU_STEP_S = 0.5
"""CPU time that counts as progress. Threads that only poll use less than this in `Silence.load_s`."""

BEAT_EVERY_S = 1.0
"""Least time between two beats of a phase that is timed, so that they do not disturb the figures."""


@dataclass(frozen=True)
class Silence:
    """How long a worker may be silent, in seconds: in work with steps, and in work without them."""

    step_s: float = 60.0
    load_s: float = 600.0


@dataclass(frozen=True)
class Beat:
    """How far a worker is. total: 0 if the phase has no steps. detail: which part of the phase.

    by_cpu: the steps of this phase take very different times, so CPU time counts throughout.
    """

    phase: str
    done: float = 0.0
    total: float = 0.0
    unit: str = ""
    detail: str = ""
    by_cpu: bool = False

    def words(self) -> str:
        """The phase and how far it is: `accuracy, 640 of 50,000 images`."""
        parts = [self.phase]
        if self.total:
            parts.append(f"{self.done:,.4g} of {self.total:,.4g} {self.unit}".rstrip())
            if self.unit != "s":
                parts[-1] = f"{self.done:,.0f} of {self.total:,.0f} {self.unit}".rstrip()
        return ", ".join([*parts, self.detail] if self.detail else parts)

    def line(self) -> str:
        """The beat as a line of JSON, without the line break."""
        return json.dumps({"beat": asdict(self)})


def beat_of(line: bytes | str) -> Beat | None:
    """The beat that a line holds; None if the line is something else."""
    with suppress(ValueError, TypeError, KeyError):
        return Beat(**json.loads(line)["beat"])
    return None


class Hung(Exception):  # noqa: N818 - a state of the worker, not a fault of this code
    """A worker fell silent. The text says in which phase and for how long."""


class Heartbeat:
    """The rule for one worker. Times are those of a monotonic clock, in seconds.

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
        """Since the last progress."""
        self.slowest_s = 0.0
        """The longest time between two beats of one phase so far."""
        self._since_beat_s = 0.0
        self._stepped = False
        self._looked = now
        self._cpu_s = 0.0

    def beat(self, beat: Beat, now: float) -> None:
        """Take a beat. One that equals the last is no progress."""
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
            now: the time.
            cpu_s: CPU seconds that the worker has used so far, which `counts_cpu` says are needed; None if
                this machine does not report them: then silence in work without steps is not judged.
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
        self._looked, self.silent_s, self._since_beat_s = now, 0.0, 0.0

    @property
    def counts_cpu(self) -> bool:
        """Whether CPU time counts as progress now."""
        return self.last.by_cpu or not self._stepped

    @property
    def limit_s(self) -> float:
        """How long the worker may be silent now."""
        return self.silence.load_s if self.counts_cpu else self.silence.step_s + self.slowest_s

    @property
    def hung(self) -> bool:
        return self.silent_s > self.limit_s

    def words(self) -> str:
        """What the worker was doing, and how long it has been silent."""
        if self.counts_cpu:
            return f"{self.last.words()}: no progress and no CPU time used for {self.silent_s:.0f} s"
        slowest = f"its slowest step before took {self.slowest_s:.1f} s"
        return f"{self.last.words()}: silent for {self.silent_s:.0f} s, {slowest}"

    def _count(self, now: float) -> None:
        passed_s = min(max(now - self._looked, 0.0), COUNTED_S)
        self.silent_s += passed_s
        self._since_beat_s += passed_s
        self._looked = now


class Beats:
    """What a worker writes its beats with."""

    def __init__(self, write: Callable[[str], object]) -> None:
        """Args:
        write: takes one line with its line break.
        """
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
        """Begin a phase. `total` 0: it has no steps. every_s: least time between two of its beats."""
        self._beat, self._every_s = Beat(name, 0.0, total, unit, detail, by_cpu), every_s
        self._send()

    def step(self, done: float, total: float | None = None, detail: str | None = None) -> None:
        """So much of the phase is done. Cheap: a beat is written for the first step, then when one is due."""
        if time.monotonic() < self._due and self._beat.done:
            return
        total = self._beat.total if total is None else total
        detail = self._beat.detail if detail is None else detail
        self._beat = replace(self._beat, done=done, total=total, detail=detail)
        self._send()

    def _send(self) -> None:
        self._write(self._beat.line() + "\n")
        self._due = time.monotonic() + self._every_s


Told = Callable[[float, float], object]
"""Takes how much of a piece of work is done, and how much there is as far as is known: `Beats.step`."""


def unheard(done: float, total: float) -> None:
    """For work that nobody watches."""


def follow(process: subprocess.Popen[bytes], heartbeat: Heartbeat) -> Generator[bytes, None, None]:
    """Yield the lines of a worker's standard output as they come, and feed the heartbeat with its beats.

    Beats are yielded as well. The caller ends the process, also after Hung.

    Raises:
        Hung: the worker fell silent.
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
    """Look at a worker now. Raises Hung if it has been silent for too long."""
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
    """Run a program that writes no beats to its end, for as long as it uses CPU time.

    Args:
        command: the program and its arguments.
        doing: the phase, for the text of Hung.
        silence: the limits; only `load_s` applies.
        cwd: the folder that it starts in.
        env: its environment.

    Returns:
        The exit code and what it printed; bytes that are no text are replaced.

    Raises:
        Hung: it used no CPU time for too long. The process has ended.
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
    """CPU time of a process and its descendants in seconds; None if this machine does not report it."""
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
