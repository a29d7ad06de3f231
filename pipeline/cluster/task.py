"""Run one stage on a worker of the cluster, and send its progress to the driver."""

from __future__ import annotations

import contextlib
import os
import pickle
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import errors
from pipeline.cluster.folders import FolderMark, listing, why_not_shared
from pipeline.running.key_facts import Profile
from pipeline.running.runner import in_process
from pipeline.stage import Context, Stage, StageRecord

UPDATE_EVERY_S = 0.25
"""Least time between two progress updates."""

Outcome = tuple[Any, ...]
"""("done", metrics, files), ("failed", pickled error, its traceback), ("apart", why), ("absent", why) or
("version", the worker's version of kdpipe)."""


@dataclass(frozen=True)
class StageTask:
    """A stage to run on the cluster.

    Attributes:
        stage: The stage.
        profile: The profile that its settings come from.
        inputs: By stage name, the folders of its inputs.
        output: The folder that it writes into.
        work: The folder for its checkpoints.
        history: The run so far, for the report.
        mark: The proof that worker and driver share the folders.
        cwd: The folder that relative paths of the profile start from.
    """

    stage: Stage
    profile: Profile
    inputs: Mapping[str, Path]
    output: Path
    work: Path
    history: tuple[StageRecord, ...]
    mark: FolderMark
    cwd: Path


class ClusterTraceback(Exception):  # noqa: N818 - the cause of an error, never an error by itself
    """The traceback of an error that was raised on another machine."""

    def __init__(self, text: str) -> None:
        super().__init__(f"on the cluster:\n{text}")


def make_task() -> Callable[[str, bytes, Any], Outcome]:
    """Return the function that Ray runs.

    Ray sends a nested function as code, not by its name. So a worker that has no kdpipe, or another version
    of it, can report that.
    """

    def task(version: str, packed: bytes, queue: Any) -> Outcome:
        try:
            from pipeline import __version__
            from pipeline.cluster.task import run_task
        except ImportError as error:
            return "absent", str(error)
        if __version__ != version:
            return "version", __version__
        return run_task(packed, queue)

    return task


def run_task(packed: bytes, queue: Any) -> Outcome:
    """Run a stage on this worker.

    Args:
        packed: A pickled `StageTask`.
        queue: The driver's queue for progress.

    Returns:
        The outcome; an exception of the stage is part of it.
    """
    try:
        task: StageTask = pickle.loads(packed)  # noqa: S301 - the driver of this run pickled it
        if why := why_not_shared(task.mark):
            return "apart", why
        with contextlib.suppress(OSError):
            os.chdir(task.cwd)
        context = Context(
            settings=task.profile.settings(task.stage.reads),
            inputs=task.inputs,
            output=task.output,
            work=task.work,
            progress=_QueueProgress(queue),
            history=task.history,
        )
        metrics = in_process(task.stage, context)
        return "done", metrics, listing(task.output)
    except Exception as error:
        return "failed", _packed(error), traceback.format_exc()


class _QueueProgress:
    """A progress reporter that sends some of its updates to the driver: each message costs a round trip."""

    def __init__(self, queue: Any) -> None:
        self._queue = queue
        self._sent_at = float("-inf")

    def update(self, done: float, total: float, unit: str = "", **figures: float | str) -> None:
        """Send the update, unless one was sent just before."""
        now = time.monotonic()
        if now - self._sent_at >= UPDATE_EVERY_S:
            self._sent_at = now
            self._send("update", done, total, unit, figures)

    def note(self, text: str) -> None:
        """Send the note."""
        self._send("note", text)

    def _send(self, *message: Any) -> None:
        with contextlib.suppress(Exception):  # a lost message must not end the stage
            self._queue.put_nowait(message)


def _packed(error: Exception) -> bytes:
    """Return the error, pickled; if that fails, the nearest base class with the same text, pickled."""
    with contextlib.suppress(Exception):
        packed = pickle.dumps(error)
        pickle.loads(packed)  # noqa: S301 - pickled in the line above
        return packed
    if isinstance(error, errors.KdpipeError):
        ours = (kind for kind in type(error).__mro__ if kind.__module__ == errors.__name__)
        nearest = next(kind for kind in ours if kind is not errors.ProfileError)
        return pickle.dumps(nearest(error.what, where=error.where, why=error.why, hint=error.hint))
    return pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
