"""Time two workers in turns: one runs while the other waits for a line on its pipe.

The second worker is started when the first is loaded and warm, so neither warms up while the other one works.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from pipeline.errors import StageError
from pipeline.heartbeat import Heartbeat, Hung, Silence, beat_of, follow
from stages.measuring import gpu, interleave, launch
from stages.measuring.contention import Usage, Watch, merge_health
from stages.measuring.launch import Subject
from stages.measuring.settings import MeasureSettings


@dataclass(frozen=True)
class Turns:
    """The samples of two targets timed in turns.

    Attributes:
        launches: For each launch the rounds of the first and of the second target: int64 (n,), nanoseconds.
        health: The worst state of the machine over all launches, with `flags` (`contention.merge_health`).
    """

    launches: list[tuple[list[np.ndarray], list[np.ndarray]]]
    health: dict[str, Any]


def run(
    first: Subject,
    second: Subject,
    measure: MeasureSettings,
    *,
    batch: int,
    threads: int,
    on_turn: Callable[[int, int], object] = lambda _done, _total: None,
    silence: Silence | None = None,
) -> Turns:
    """Time both targets in turns, bound to the same cores.

    Args:
        first: One target.
        second: The other.
        measure: How to measure them.
        batch: Images of an inference.
        threads: CPU threads of an inference.
        on_turn: Called after a round of each with the number of such turns done and planned, in all launches.
        silence: How long a worker may be silent.

    Raises:
        StageError: A worker hung, ended without a result, or reported an error.
    """
    launches, healths = [], []
    rounds_in_all = measure.compare_launches * measure.compare_rounds
    for number in range(measure.compare_launches):
        cores = launch.cores_for(measure, threads)
        jobs = []
        for side, subject in enumerate((first, second)):
            folder = launch.make_empty_folder(subject.work / f"turns-{number}-{side}-{subject.slug}")
            job = subject.worker_job(
                measure, "turns", output=str(folder), cores=cores, batch=batch, threads=threads
            )
            jobs.append((subject, launch.write_job(job, folder)))
        # The start order shifts the memory layout: it alternates between launches too.
        started = jobs if number % 2 == 0 else jobs[::-1]
        with _loaded(started, silence or Silence()) as pair:
            sides = pair if number % 2 == 0 else pair[::-1]
            rounds: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
            watch = Watch(tuple(cores), threads, gpu=gpu.gpu_watch(first.target["runtime"]))
            watch.begin()
            for index, turn in enumerate(interleave.order(measure.compare_rounds)):
                watch.look()
                for side in turn:
                    rounds[side].append(sides[side].round())
                on_turn(number * measure.compare_rounds + index + 1, rounds_in_all)
            healths.append(watch.end(_wall_over_cpu(sides), _usage(sides)))
        launches.append(rounds)
    return Turns(launches, merge_health(healths))


def _usage(sides: Sequence[_Side]) -> Usage:
    return Usage(
        cpu_s=sum(side.used["cpu_s"] for side in sides),
        switches=int(sum(side.used["switches"] for side in sides)),
    )


def _wall_over_cpu(sides: Sequence[_Side]) -> float | None:
    """Return the ratio of the side that was delayed more; None if no CPU time was counted."""
    used = [side.used for side in sides if side.used["round_cpu_s"]]
    ratios = [times["round_wall_s"] / times["round_cpu_s"] for times in used]
    return round(max(ratios), 3) if ratios else None


class _Side:
    """A worker that measures one round for each line that it receives."""

    def __init__(self, subject: Subject, job_file: Path, silence: Silence) -> None:
        self._subject, self._folder = subject, job_file.parent
        self._errors = (self._folder / "stderr.txt").open("w+", encoding="utf-8", errors="replace")
        try:
            self._process = launch.start(job_file, subject, stdin=subprocess.PIPE, stderr=self._errors)
        except StageError:
            self._errors.close()
            raise
        self._heartbeat = Heartbeat(silence, time.monotonic())
        self._lines = follow(self._process, self._heartbeat)

        self.used: dict[str, float] = {}
        """Since warm-up: `cpu_s` and `switches`; of its rounds only: `round_wall_s` and `round_cpu_s`."""

    def ready(self) -> None:
        """Wait until the target is loaded and warm."""
        self._answer()

    def round(self) -> np.ndarray:
        """Measure one round, and return its samples: int64 (n,), nanoseconds per inference."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(b"go\n")
            self._process.stdin.flush()
        except OSError:
            self._ended()
        self._heartbeat.restart(time.monotonic())
        return np.asarray(self._answer(), dtype=np.int64)

    def close(self) -> None:
        """End the worker, and wait for it."""
        self._lines.close()
        assert self._process.stdin is not None
        with suppress(OSError):  # it ended before it read its last line
            self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):  # all of its answers have been read
            self._process.wait(timeout=10)
        launch.end(self._process)
        self._errors.close()

    def _answer(self) -> list[int]:
        try:
            line = next((line for line in self._lines if beat_of(line) is None), b"")
        except Hung as why:
            launch.end(self._process)
            raise launch.hang_error(self._subject, str(why)) from None
        if not line:
            self._ended()
        self.used = json.loads(line)
        ns: list[int] = self.used.pop("ns")  # type: ignore[assignment]
        return ns

    def _ended(self) -> NoReturn:
        code = self._process.wait()
        self._errors.seek(0)
        name = self._subject.target["target"]
        launch.read_result(self._folder, code, self._errors.read(), name)
        raise StageError(
            f"the process that measured {name} ended between two rounds",
            where=f"stage measure, target {name}",
            why=f"exit code {code}",
            hint="run the same command again; `--set measure.compare_s=0` skips comparisons",
        )


@contextmanager
def _loaded(jobs: Sequence[tuple[Subject, Path]], silence: Silence) -> Iterator[list[_Side]]:
    """Start each worker when the previous one is loaded and warm; end all of them at the end."""
    sides: list[_Side] = []
    with ExitStack() as started:
        for subject, file in jobs:
            side = _Side(subject, file, silence)
            started.callback(side.close)
            side.ready()
            sides.append(side)
        yield sides
