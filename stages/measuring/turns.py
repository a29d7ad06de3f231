"""Drives two workers in turns: one is timed while the other waits on its pipe.

The second is started when the first is loaded and warm, so that neither warms up beside the other.
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
from stages.measuring.contention import Usage, Watch, merged
from stages.measuring.launch import Subject
from stages.measuring.settings import MeasureSettings


@dataclass(frozen=True)
class Turns:
    """launches: of each the rounds of the first and of the second, as `interleave.compare` takes them.
    health: of all of them, what else went on meanwhile, as of a latency; `flags` among it."""

    launches: list[tuple[list[np.ndarray], list[np.ndarray]]]
    health: dict[str, Any]


def run(
    first: Subject,
    second: Subject,
    measure: MeasureSettings,
    *,
    batch: int,
    threads: int,
    told: Callable[[int, int], object] = lambda done, total: None,
    silence: Silence | None = None,
) -> Turns:
    """Times both in turns, bound to the same cores.

    Args:
        first, second: the targets.
        measure: how to measure them.
        batch, threads: images and CPU threads of an inference.
        told: called after each turn of both with how many are done, and how many there are in all launches.
        silence: how long a worker may be silent.

    Returns:
        The rounds and their health.

    Raises:
        StageError: a worker hung, died or refused.
    """
    launches, healths = [], []
    rounds_in_all = measure.compare_launches * measure.compare_rounds
    for number in range(measure.compare_launches):
        cores = launch.cores_for(measure, threads)
        jobs = []
        for side, subject in enumerate((first, second)):
            folder = launch.fresh_folder(subject.work / f"turns-{number}-{side}-{subject.slug}")
            job = subject.job(measure, "turns", output=str(folder), cores=cores, batch=batch, threads=threads)
            jobs.append((subject, launch.write_job(job, folder)))
        # Who starts first lies elsewhere in memory: the launches take turns too.
        started = jobs if number % 2 == 0 else jobs[::-1]
        with _loaded(started, silence or Silence()) as pair:
            sides = pair if number % 2 == 0 else pair[::-1]
            rounds: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
            watch = Watch(tuple(cores), threads, gpu=gpu.watch_of(first.target["runtime"]))
            watch.begin()
            for index, turn in enumerate(interleave.order(measure.compare_rounds)):
                watch.look()
                for side in turn:
                    rounds[side].append(sides[side].round())
                told(number * measure.compare_rounds + index + 1, rounds_in_all)
            healths.append(watch.end(_wall_over_cpu(sides), _usage(sides)))
        launches.append(rounds)
    return Turns(launches, merged(healths))


def _usage(sides: Sequence[_Side]) -> Usage:
    return Usage(
        cpu_s=sum(side.used["cpu_s"] for side in sides),
        switches=int(sum(side.used["switches"] for side in sides)),
    )


def _wall_over_cpu(sides: Sequence[_Side]) -> float | None:
    """Of the side that was held up more."""
    used = [side.used for side in sides if side.used["round_cpu_s"]]
    ratios = [one["round_wall_s"] / one["round_cpu_s"] for one in used]
    return round(max(ratios), 3) if ratios else None


class _Side:
    """One worker that waits to be told to measure a round."""

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
        """Since it was warm: `cpu_s`, `switches`; of its rounds alone `round_wall_s`, `round_cpu_s`."""

    def ready(self) -> None:
        """Returns when the target is loaded and warm."""
        self._answer()

    def round(self) -> np.ndarray:
        """int64 (n,) nanoseconds per inference of one round."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(b"go\n")
            self._process.stdin.flush()
        except OSError:
            self._ended()
        self._heartbeat.restart(time.monotonic())
        return np.asarray(self._answer(), dtype=np.int64)

    def close(self) -> None:
        """Ends the worker and waits for it."""
        self._lines.close()
        assert self._process.stdin is not None
        with suppress(OSError):  # it died with something of ours unread
            self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):  # all of its answers are here
            self._process.wait(timeout=10)
        launch.end(self._process)
        self._errors.close()

    def _answer(self) -> list[int]:
        try:
            line = next((line for line in self._lines if beat_of(line) is None), b"")
        except Hung as why:
            launch.end(self._process)
            raise launch.hung(self._subject, str(why)) from None
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
            hint="run it again; measure.compare_s: 0 leaves comparisons out",
        )


@contextmanager
def _loaded(jobs: Sequence[tuple[Subject, Path]], silence: Silence) -> Iterator[list[_Side]]:
    """Start each when the one before is loaded and warm; end all of them after."""
    sides: list[_Side] = []
    with ExitStack() as started:
        for subject, file in jobs:
            side = _Side(subject, file, silence)
            started.callback(side.close)
            side.ready()
            sides.append(side)
        yield sides
