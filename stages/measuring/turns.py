"""Drives two workers in turns: one is timed while the other waits on its pipe."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from pipeline.child_process import environment
from pipeline.errors import StageError
from stages.measuring import gpu, interleave, launch
from stages.measuring.launch import Subject
from stages.measuring.settings import MeasureSettings
from stages.measuring.watch import Usage, Watch, merged


@dataclass(frozen=True)
class Turns:
    """launches: of each the rounds of the first and of the second, as `interleave.compare` takes them.
    health: of all of them, what else went on meanwhile, as of a latency; `flags` among it."""

    launches: list[tuple[list[np.ndarray], list[np.ndarray]]]
    health: dict[str, Any]


def run(first: Subject, second: Subject, measure: MeasureSettings, *, batch: int, threads: int) -> Turns:
    """Both are bound to the same cores. Raises StageError if a worker dies or refuses."""
    launches, healths = [], []
    for number in range(measure.compare_launches):
        cores = launch.cores_for(measure, threads)
        jobs = []
        for side, subject in enumerate((first, second)):
            folder = launch.fresh_folder(subject.work / f"turns-{number}-{side}-{subject.slug}")
            job = subject.job(measure, "turns", output=str(folder), cores=cores, batch=batch, threads=threads)
            jobs.append((subject, launch.write_job(job, folder)))
        # Who starts first lies elsewhere in memory: the launches take turns too.
        started = jobs if number % 2 == 0 else jobs[::-1]
        with _loaded([_Side(subject, file) for subject, file in started]) as pair:
            sides = pair if number % 2 == 0 else pair[::-1]
            rounds: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
            watch = Watch(tuple(cores), threads, gpu=gpu.watch_of(first.target["runtime"]))
            watch.begin()
            for turn in interleave.order(measure.compare_rounds):
                watch.look()
                for side in turn:
                    rounds[side].append(sides[side].round())
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

    def __init__(self, subject: Subject, job_file: Path) -> None:
        self._subject, self._folder = subject, job_file.parent
        self._errors = (self._folder / "stderr.txt").open("w+", encoding="utf-8")
        self._process = subprocess.Popen(
            launch.command(job_file),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment(),
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in: IO[str] = self._process.stdin
        self._out: IO[str] = self._process.stdout

        self.used: dict[str, float] = {}
        """Since it was warm: `cpu_s`, `switches`; of its rounds alone `round_wall_s`, `round_cpu_s`."""

    def ready(self) -> None:
        """Returns when the target is loaded and warm."""
        self._answer()

    def round(self) -> np.ndarray:
        """int64 (n,) nanoseconds per inference of one round."""
        try:
            self._in.write("go\n")
            self._in.flush()
        except OSError:
            self._ended()
        return np.asarray(self._answer(), dtype=np.int64)

    def close(self) -> None:
        """Ends the worker and waits for it."""
        for pipe in (self._in, self._out):
            try:
                pipe.close()
            except OSError:  # it died with something of ours unread
                continue
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def _answer(self) -> list[int]:
        line = self._out.readline()
        if not line:
            self._ended()
        self.used = json.loads(line)
        ns: list[int] = self.used.pop("ns")  # type: ignore[assignment]
        return ns

    def _ended(self) -> None:
        code = self._process.wait()
        self._errors.seek(0)
        name = self._subject.target["target"]
        launch.read_result(self._folder, code, self._errors.read(), name)
        raise StageError(
            f"the process that measured {name} ended between two rounds",
            where=f"stage measure, target {name}",
            why=f"exit code {code}",
            mend="run it again; measure.compare_s: 0 leaves comparisons out",
        )


@contextmanager
def _loaded(sides: list[_Side]) -> Iterator[list[_Side]]:
    """Both loaded one after the other, so that neither warms up while the other does; ended after."""
    try:
        for side in sides:
            side.ready()
        yield sides
    finally:
        for side in sides:
            side.close()
