"""Run several command lines of kdpipe at once, each in its own process and on its own cores.

The number of training threads is no part of an artefact's key unless the profile sets it
(`compute.threads`). Dividing the cores among processes therefore changes no key.
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
"""How long a process may take to end before it is killed."""


@dataclass(frozen=True)
class CommandLine:
    """A command line.

    Attributes:
        title: Its name in messages.
        words: The words after `kdpipe`; they contain `--json`.
        profile: The profile of the command line, if it is loaded.
    """

    title: str
    words: tuple[str, ...]
    profile: LoadedProfile | None = None


@dataclass
class _RunningCommand:
    command_line: CommandLine
    process: subprocess.Popen[bytes]
    slot: int
    started: float


def run_command_lines(
    command_lines: Sequence[CommandLine],
    at_once: int,
    cores: Sequence[Sequence[int]],
    folder: Path,
    finished: Callable[[CommandLine, int, dict[str, Any], float], None],
) -> None:
    """Run all command lines, in order. An interrupt ends the processes and keeps their checkpoints.

    Args:
        command_lines: The command lines.
        at_once: How many to run at once.
        cores: The cores of each of the `at_once` slots; empty for all cores.
        folder: Receives what the processes print.
        finished: Called after each with its exit code, its JSON document (an `error` made of its standard
            error if it printed none) and its time in seconds.
    """
    waiting, free_slots = list(reversed(command_lines)), list(reversed(range(at_once)))
    running: list[_RunningCommand] = []
    try:
        while waiting or running:
            while waiting and free_slots:
                running.append(_start(waiting.pop(), free_slots.pop(), cores, folder))
            for command in [command for command in running if command.process.poll() is not None]:
                running.remove(command)
                free_slots.append(command.slot)
                seconds = time.monotonic() - command.started
                document = _document(folder, command.slot)
                finished(command.command_line, command.process.returncode, document, seconds)
            time.sleep(POLL_S)
    finally:
        _end([command.process for command in running])


def core_shares(cores: Sequence[int], usable: float, at_once: int) -> list[list[int]]:
    """Return the cores of each of `at_once` processes: disjoint if there are enough, else one for several.

    Args:
        cores: The cores that this process may run on.
        usable: How many cores a container's quota allows.
        at_once: The number of processes.
    """
    share = max(1, int(usable) // at_once)
    return [[cores[(slot * share + nth) % len(cores)] for nth in range(share)] for slot in range(at_once)]


def _start(
    command_line: CommandLine, slot: int, cores: Sequence[Sequence[int]], folder: Path
) -> _RunningCommand:
    slot_cores = ",".join(map(str, cores[slot])) if cores else "-"
    profile = "-"
    if command_line.profile is not None:
        profile = str(folder / f"{slot}.profile")
        Path(profile).write_bytes(pickle.dumps(command_line.profile))
    command = python_command("pipeline.on_cores", slot_cores, profile, *command_line.words)
    with (folder / f"{slot}.out").open("wb") as out, (folder / f"{slot}.err").open("wb") as err:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment()
        )
    return _RunningCommand(command_line, process, slot, time.monotonic())


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
