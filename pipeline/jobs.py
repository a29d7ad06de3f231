"""Several command lines of kdpipe at once, each in a process and on cores of its own.

    python -m pipeline.jobs 0,1 distill profile.yaml …

is `kdpipe distill profile.yaml …` on the cores 0 and 1. How many threads train is no part of an artefact's
key unless the profile says it (`compute.threads`), so sharing out cores changes no key.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.child_process import environment, python_command

POLL_S = 0.1
GRACE_S = 30.0
"""How long a process that is told to end may take before it is killed."""


@dataclass(frozen=True)
class Job:
    """A command line (`words`, which ask for `--json`) and what it is called when it is told."""

    title: str
    words: tuple[str, ...]


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    slot: int
    begun: float


def run_jobs(
    jobs: Sequence[Job],
    at_once: int,
    cores: Sequence[Sequence[int]],
    folder: Path,
    finished: Callable[[Job, int, dict[str, Any], float], None],
) -> None:
    """Runs all jobs, `at_once` at a time, in order.

    cores: for each of the places at once the cores it may use; empty: all. folder: for what they print.
    finished: told of each with its exit code, its JSON document (empty if it printed none) and its seconds.
    When an interrupt ends this call, the processes are told to end, which keeps their checkpoints.
    """
    waiting, free = list(reversed(jobs)), list(reversed(range(at_once)))
    running: list[_Running] = []
    try:
        while waiting or running:
            while waiting and free:
                running.append(_start(waiting.pop(), free.pop(), cores, folder))
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                free.append(one.slot)
                seconds = time.monotonic() - one.begun
                finished(one.job, one.process.returncode, _document(folder, one.slot), seconds)
            time.sleep(POLL_S)
    finally:
        _end([one.process for one in running])


def shares(cores: Sequence[int], usable: float, at_once: int) -> list[list[int]]:
    """Disjoint cores for each of `at_once` processes; where there are too few, one core for several.

    cores: that this process may run on; usable: how many of them a container's quota leaves.
    """
    each = max(1, int(usable) // at_once)
    return [[cores[(slot * each + nth) % len(cores)] for nth in range(each)] for slot in range(at_once)]


def _start(job: Job, slot: int, cores: Sequence[Sequence[int]], folder: Path) -> _Running:
    mine = ",".join(map(str, cores[slot])) if cores else "-"
    command = python_command("pipeline.jobs", mine, *job.words)
    with (folder / f"{slot}.out").open("wb") as out, (folder / f"{slot}.err").open("wb") as err:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment()
        )
    return _Running(job, process, slot, time.monotonic())


def _document(folder: Path, slot: int) -> dict[str, Any]:
    """What the job printed; without a document the last line of what it said in its stead."""
    try:
        found: dict[str, Any] = json.loads((folder / f"{slot}.out").read_text(encoding="utf-8"))
    except ValueError:
        said = (folder / f"{slot}.err").read_text(encoding="utf-8", errors="replace").strip()
        return {"error": {"what": said.rpartition("\n")[2] or "it ended without a word", "why": ""}}
    return found


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def main(words: Sequence[str]) -> int:
    from pipeline.cli import main as kdpipe

    cores, *rest = words
    if cores != "-" and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    return kdpipe(rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
