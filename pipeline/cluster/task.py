"""What a worker of a cluster does: one stage, with its progress sent back to the driver."""

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
from pipeline.cluster.folders import Mark, listing, unseen
from pipeline.running.plan import Profile
from pipeline.running.runner import in_process
from pipeline.stage import Context, Stage, StageRecord

TELL_EVERY_S = 0.25

Outcome = tuple[Any, ...]
"""("done", metrics, files), ("failed", pickled error, its traceback), ("apart", why), ("absent", why) or
("version", the worker's)."""


@dataclass(frozen=True)
class Job:
    """A stage to run: the fields of its `Context` that can travel, and what its settings come from.

    mark: proves that the folders are shared. cwd: what relative paths of the profile start from.
    """

    stage: Stage
    profile: Profile
    inputs: Mapping[str, Path]
    output: Path
    work: Path
    history: tuple[StageRecord, ...]
    mark: Mark
    cwd: Path


class There(Exception):  # noqa: N818 - the cause of an error, never one by itself
    """The traceback of an error that was raised on another machine."""

    def __init__(self, text: str) -> None:
        super().__init__(f"on the cluster:\n{text}")


def make_task() -> Callable[[str, bytes, Any], Outcome]:
    """The function that Ray runs. A nested one is sent as code, not by its name: so a worker without
    kdpipe, or with another version, can say so."""

    def task(version: str, job: bytes, queue: Any) -> Outcome:
        try:
            from pipeline import __version__
            from pipeline.cluster.task import work
        except ImportError as error:
            return "absent", str(error)
        if __version__ != version:
            return "version", __version__
        return work(job, queue)

    return task


def work(packed: bytes, queue: Any) -> Outcome:
    """Runs the stage of a pickled `Job`; an error that it raises becomes part of the outcome."""
    try:
        job: Job = pickle.loads(packed)
        if why := unseen(job.mark):
            return "apart", why
        with contextlib.suppress(OSError):
            os.chdir(job.cwd)
        context = Context(
            settings=job.profile.settings(job.stage.reads),
            inputs=job.inputs,
            output=job.output,
            work=job.work,
            progress=_Sent(queue),
            history=job.history,
        )
        metrics = in_process(job.stage, context)
        return "done", metrics, listing(job.output)
    except Exception as error:
        return "failed", _packed(error), traceback.format_exc()


class _Sent:
    """Progress that goes to the driver's queue, thinned here: each message costs a round trip."""

    def __init__(self, queue: Any) -> None:
        self._queue = queue
        self._told_at = float("-inf")

    def update(self, done: float, total: float, unit: str = "", **figures: float | str) -> None:
        now = time.monotonic()
        if now - self._told_at >= TELL_EVERY_S:
            self._told_at = now
            self._send("update", done, total, unit, figures)

    def note(self, text: str) -> None:
        self._send("note", text)

    def _send(self, *said: Any) -> None:
        with contextlib.suppress(Exception):  # what a stage has made must not be lost for a message
            self._queue.put_nowait(said)


def _packed(error: Exception) -> bytes:
    """The error, pickled; one that cannot be becomes the nearest that can, with the same words."""
    with contextlib.suppress(Exception):
        packed = pickle.dumps(error)
        pickle.loads(packed)
        return packed
    if isinstance(error, errors.KdpipeError):
        ours = (kind for kind in type(error).__mro__ if kind.__module__ == errors.__name__)
        nearest = next(kind for kind in ours if kind is not errors.ProfileError)
        return pickle.dumps(nearest(error.what, where=error.where, why=error.why, hint=error.hint))
    return pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
