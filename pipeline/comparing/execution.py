"""Execute a planned comparison: train the teacher, finish the runs, judge all of them together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.comparing.comparison import (
    DamagedArtefacts,
    FinishedRun,
    PlannedRun,
    UnfitMethod,
    compare_runs,
    finish_runs,
)
from pipeline.comparing.text import comparison_document
from pipeline.errors import StageError

if TYPE_CHECKING:
    from pipeline.console.console import Console
    from pipeline.profile.loading import LoadedProfile
    from pipeline.running.run_state import Listener, RunOutcome
    from pipeline.store.store import Store

MAX_ATTEMPTS = 3
"""How often artefacts may be damaged before the error blames the disk."""


def execute_comparison(
    loaded: LoadedProfile,
    store: Store,
    runs: Sequence[PlannedRun],
    unfit: Sequence[UnfitMethod],
    *,
    split: str,
    jobs: int,
    listener: Listener,
    console: Console,
    train_teacher: Callable[[], RunOutcome],
    so_far: list[FinishedRun] | None = None,
) -> tuple[list[FinishedRun], dict[str, Any]]:
    """Bring all runs up to date and compare them.

    Args:
        loaded: The profile.
        store: Where the artefacts are.
        runs: The runs of `plan_runs`.
        unfit: The methods that do not fit.
        split: The images to judge on, `test` or `validation`.
        jobs: How many runs to train at once.
        listener: Receives the events of the runs.
        console: Prints the lines of runs in other processes.
        train_teacher: Brings the teacher up to date.
        so_far: Receives every finished run, so that a caller can report an interrupted comparison.

    Returns:
        All runs, and the fields of the JSON document.

    Raises:
        StageError: The teacher or every run failed, or artefacts are damaged again and again.
    """
    finished: list[FinishedRun] = [] if so_far is None else so_far
    failed: dict[str, str] = {}
    for _ in range(MAX_ATTEMPTS):
        finished.clear()
        outcome = train_teacher()
        outcome.raise_for_result()
        teacher = outcome.results[-1]
        if jobs > 1:
            from pipeline.comparing.parallel_runs import train_at_once

            failed |= train_at_once(runs, failed, store, jobs, console)
        done = finish_runs(runs, store, listener, finished.append, failed)
        failed |= {each.run.title: each.why_failed for each in done if each.why_failed}
        error = error_for_failed_runs(done)
        if error is not None and len(failed) == len(runs):
            raise error
        try:
            store.prepare()
            folder, key, comparison = compare_runs(
                loaded,
                done,
                unfit,
                store,
                teacher=teacher,
                split=split,
                progress=listener.progress("compare"),
            )
            store.digests.save()
            return done, comparison_document(comparison, done, folder, key)
        except DamagedArtefacts as damaged:
            console.line(f"damaged, so it runs again: {damaged}")
        finally:
            store.release()
    raise StageError(
        "Artefacts are damaged again and again",
        where=str(store.root),
        hint="check the disk and its file system, or name a store on another disk with --store",
    )


def error_for_failed_runs(done: Sequence[FinishedRun]) -> StageError | None:
    """Return an error that lists the failed runs; None if no run failed."""
    failed = [each for each in done if each.why_failed]
    if not failed:
        return None
    return StageError(
        f"{len(failed)} of {len(done)} runs failed",
        where=", ".join(each.run.title for each in failed),
        why=str(failed[0].why_failed),
        hint="run the same command to try them again, or leave them out with --methods",
    )


def seeds_of_count(profile: LoadedProfile, count: int) -> list[int]:
    """Return `count` seeds of the student, counted from the profile's own."""
    distill = profile.sections["distill"]
    first = int(profile.sections["seed"] if distill["seed"] is None else distill["seed"])
    return list(range(first, first + count))
