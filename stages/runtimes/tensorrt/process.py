"""Runs the builder in a process of its own, reports its progress, and turns its failure into one error.

Light: only the subprocess imports the SDK.
"""

from __future__ import annotations

import json
import queue
import subprocess
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import asdict
from typing import IO, Any

from pipeline.child_process import environment, python_command
from pipeline.errors import StageError
from pipeline.stage import Progress
from stages.runtimes.tensorrt import faults as tensorrt_faults
from stages.runtimes.tensorrt.build import Specification
from stages.runtimes.tensorrt.phases import remaining_s

HEARTBEAT_S = 5.0
"""How often the progress of a silent builder is reported."""

LAST_LINES = 8


def run(
    specification: Specification,
    onnx: bytes,
    *,
    label: str,
    where: str,
    progress: Progress,
    earlier_s: float | None = None,
) -> dict[str, Any]:
    """Build an engine.

    Args:
        specification: what to build.
        onnx: the content of the ONNX file.
        label: the target, for the log.
        where: the ONNX file, for errors.
        progress: takes progress and notes.
        earlier_s: how long a build like this took before, in seconds; None: unknown.

    Returns:
        The builder's facts about the engine that it wrote.

    Raises:
        StageError: the parser, the builder or the dead process failed; with its own messages.
    """
    child = subprocess.Popen(
        python_command("stages.runtimes.tensorrt.build"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    lines: queue.Queue[bytes | None] = queue.Queue()
    last_lines: deque[str] = deque(maxlen=LAST_LINES)
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    threads = [
        threading.Thread(target=_write_input, args=(child.stdin, specification, onnx), daemon=True),
        threading.Thread(target=_read_messages, args=(child.stdout, lines), daemon=True),
        threading.Thread(target=_read_errors, args=(child.stderr, last_lines), daemon=True),
    ]
    for thread in threads:
        thread.start()
    try:
        outcome = follow(lines, label, progress, earlier_s)
        status = child.wait()
        threads[2].join(timeout=5)
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
    if "done" in outcome:
        done: dict[str, Any] = outcome["done"]
        return done
    if "fault" in outcome:
        fault = outcome["fault"]
        place = f"{where}, {fault['where']}" if fault["where"] else where
        raise StageError(fault["what"], where=place, why=fault["why"], hint=fault["hint"])
    error = tensorrt_faults.died(specification.package, status, list(last_lines))
    raise StageError(error.what, where=where, why=error.why, hint=error.hint)


def follow(
    lines: queue.Queue[bytes | None],
    label: str,
    progress: Progress,
    earlier_s: float | None,
    heartbeat_s: float = HEARTBEAT_S,
) -> dict[str, Any]:
    """Pass on the builder's messages, and report its progress when it is silent.

    Args:
        lines: its standard output; None: it has ended.
        label: the target.
        progress: takes progress and notes.
        earlier_s: how long a build like this took before, in seconds; None: unknown.
        heartbeat_s: how often the progress of a silent builder is reported.

    Returns:
        Its last message, with `done` or `fault`; empty if it ended without one.
    """
    started = time.monotonic()
    phase, step, steps, share = "starting", 0, 1, 0.0
    while True:
        try:
            line = lines.get(timeout=heartbeat_s)
        except queue.Empty:
            message: dict[str, Any] = {"progress": [phase, step, steps, share]}
        else:
            if line is None:
                return {}
            message = json.loads(line)
        if "progress" in message:
            phase, step, steps, share = message["progress"]
            elapsed = time.monotonic() - started
            progress.update(
                round(100.0 * share, 1),
                100.0,
                "%",
                target=label,
                phase=f"{phase} {step}/{steps}",
                elapsed=f"{elapsed:.0f} s",
                eta_s=_or_unknown(remaining_s(share, elapsed, earlier_s)),
            )
        elif "note" in message:
            progress.note(f"{label}: {message['note']}")
        else:
            return message


def _or_unknown(seconds: float | None) -> float | str:
    return "" if seconds is None else round(seconds, 1)


def _write_input(pipe: IO[bytes], specification: Specification, onnx: bytes) -> None:
    with suppress(BrokenPipeError):  # the child died: its status is the error
        pipe.write(json.dumps(asdict(specification)).encode() + b"\n" + onnx)
        pipe.close()


def _read_messages(pipe: IO[bytes], lines: queue.Queue[bytes | None]) -> None:
    for line in pipe:
        lines.put(line)
    lines.put(None)


def _read_errors(pipe: IO[bytes], last_lines: deque[str]) -> None:
    for line in pipe:
        last_lines.append(line.decode(errors="replace").rstrip())
