"""Run several command lines of kdpipe at once, each in its own process and on its own cores.

How many threads train is no part of an artefact's key unless the profile sets it (`compute.threads`), so
sharing out cores changes no key.
"""

from __future__ import annotations

import json
import pickle
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.profile.loading import LoadedProfile

from pipeline.child_process import environment, last_line, python_command

POLL_S = 0.1
GRACE_S = 30.0
"""How long a process that is told to end may take before it is killed."""


@dataclass(frozen=True)
class Job:
    """A command line.

    Attributes:
        title: Its name in messages.
        words: The words after `kdpipe`; they ask for `--json`.
        profile: The profile that the words name, if it is loaded.
    """

    title: str
    words: tuple[str, ...]
    profile: LoadedProfile | None = None


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
    profile = "-"
    if job.profile is not None:
        profile = str(folder / f"{slot}.profile")
        Path(profile).write_bytes(pickle.dumps(job.profile))
    command = python_command("pipeline.on_cores", mine, profile, *job.words)
    with (folder / f"{slot}.out").open("wb") as out, (folder / f"{slot}.err").open("wb") as err:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment()
        )
    return _Running(job, process, slot, time.monotonic())


def _document(folder: Path, slot: int) -> dict[str, Any]:
    """Return the JSON document that the command printed; without one, the last line of its standard error."""
    try:
        document: dict[str, Any] = json.loads((folder / f"{slot}.out").read_text(encoding="utf-8"))
    except ValueError:
        stderr = (folder / f"{slot}.err").read_text(encoding="utf-8", errors="replace")
        what = last_line(stderr) or "it ended without a message"
        return {"error": {"what": what, "why": ""}}
    return document


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
