"""Runs the builder in its process: feeds it, follows it, tells how far it is, turns its end into one error.

Light: the SDK is imported in the subprocess alone.
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
from stages.runtimes.tensorrt.phases import to_go_s

HEARTBEAT_S = 5.0
"""A builder that says nothing is still told to be at work so often."""

LAST_WORDS = 8


def run(
    specification: Specification,
    onnx: bytes,
    *,
    label: str,
    where: str,
    progress: Progress,
    before_s: float | None = None,
) -> dict[str, Any]:
    """What the builder told of the engine that it wrote.

    label: the target, for the log; where: the ONNX file, for errors; before_s: how long the like took.
    Raises StageError with the parser's, the builder's or the dead process's own messages.
    """
    child = subprocess.Popen(
        python_command("stages.runtimes.tensorrt.build"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    lines: queue.Queue[bytes | None] = queue.Queue()
    last_words: deque[str] = deque(maxlen=LAST_WORDS)
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    threads = [
        threading.Thread(target=_feed, args=(child.stdin, specification, onnx), daemon=True),
        threading.Thread(target=_listen, args=(child.stdout, lines), daemon=True),
        threading.Thread(target=_drain, args=(child.stderr, last_words), daemon=True),
    ]
    for thread in threads:
        thread.start()
    try:
        outcome = follow(lines, label, progress, before_s)
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
    error = tensorrt_faults.died(specification.package, status, list(last_words))
    raise StageError(error.what, where=where, why=error.why, hint=error.hint)


def follow(
    lines: queue.Queue[bytes | None],
    label: str,
    progress: Progress,
    before_s: float | None,
    heartbeat_s: float = HEARTBEAT_S,
) -> dict[str, Any]:
    """Passes on what the builder tells, line by line, and that it is at work when it tells nothing.

    Returns its last message, `done` or `fault`; nothing if it ended (None in the queue) without one.
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
                eta_s=_or_unknown(to_go_s(share, elapsed, before_s)),
            )
        elif "note" in message:
            progress.note(f"{label}: {message['note']}")
        else:
            return message


def _or_unknown(seconds: float | None) -> float | str:
    return "" if seconds is None else round(seconds, 1)


def _feed(pipe: IO[bytes], specification: Specification, onnx: bytes) -> None:
    with suppress(BrokenPipeError):  # the child died: its status tells
        pipe.write(json.dumps(asdict(specification)).encode() + b"\n" + onnx)
        pipe.close()


def _listen(pipe: IO[bytes], lines: queue.Queue[bytes | None]) -> None:
    for line in pipe:
        lines.put(line)
    lines.put(None)


def _drain(pipe: IO[bytes], last_words: deque[str]) -> None:
    for line in pipe:
        last_words.append(line.decode(errors="replace").rstrip())
