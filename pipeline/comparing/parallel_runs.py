"""Runs of a comparison at once: each that is not cached in a process of its own."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from pipeline import machine
from pipeline.comparing.parallel_commands import Job, run_jobs, shares
from pipeline.console.tables import duration
from pipeline.running.plan import make_plan

if TYPE_CHECKING:
    from pipeline.comparing.comparison import Run
    from pipeline.console.console import Console
    from pipeline.store.store import Store


def make_at_once(
    runs: Sequence[Run], failed_before: Collection[str], store: Store, at_once: int, console: Console
) -> dict[str, str]:
    """Makes the runs that are not cached, `at_once` at a time; by title, why those failed that did.

    The teacher must be up to date. An interrupt ends all processes and keeps their checkpoints.
    """
    stale = [run for run in runs if run.title not in failed_before and _is_stale(run, store)]
    jobs = [Job(run.title, _words(run, store), run.profile) for run in stale]
    cores = machine.allowed_cores()
    failed: dict[str, str] = {}

    def finished(job: Job, code: int, document: dict[str, Any], seconds: float) -> None:
        if code:
            error = document.get("error", {})
            what, why = error.get("what") or f"it ended with code {code}", error.get("why")
            failed[job.title] = f"{what}: {why}" if why else what
        mark = console.symbol("failed" if code else "ran")
        console.line(f"{mark} {job.title}  {'failed' if code else 'ran'}  {duration(seconds)}")

    with store.scratch() as folder:
        run_jobs(jobs, at_once, shares(cores, machine.usable_cpu(), at_once), folder, finished)
    return failed


def _is_stale(run: Run, store: Store) -> bool:
    return make_plan(run.profile, store, only="distill")[-1].status == "stale"


def _words(run: Run, store: Store) -> tuple[str, ...]:
    sets = [word for override in run.profile.overrides for word in ("--set", override)]
    return ("distill", str(run.profile.path), *sets, "--store", str(store.root), "--json", "--no-progress")
