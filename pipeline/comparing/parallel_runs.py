"""Train several runs of a comparison at once, each in its own process."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from pipeline import machine
from pipeline.comparing.parallel_commands import CommandLine, core_shares, run_command_lines
from pipeline.console.tables import duration
from pipeline.running.plan import make_plan

if TYPE_CHECKING:
    from pipeline.comparing.comparison import PlannedRun
    from pipeline.console.console import Console
    from pipeline.store.store import Store


def train_at_once(
    runs: Sequence[PlannedRun], failed_before: Collection[str], store: Store, at_once: int, console: Console
) -> dict[str, str]:
    """Train the runs that are not cached, in several processes.

    An interrupt ends all processes and keeps their checkpoints.

    Args:
        runs: The runs; their teacher must be up to date.
        failed_before: The titles of runs that have failed already; they are not tried again.
        store: Where the artefacts are.
        at_once: How many processes to run at once.
        console: Prints a line for each finished run.

    Returns:
        By title, why a run failed.
    """
    stale = [run for run in runs if run.title not in failed_before and _is_stale(run, store)]
    command_lines = [CommandLine(run.title, _words(run, store), run.profile) for run in stale]
    cores = machine.allowed_cores()
    failed: dict[str, str] = {}

    def finished(command_line: CommandLine, code: int, document: dict[str, Any], seconds: float) -> None:
        if code:
            error = document.get("error", {})
            what, why = error.get("what") or f"it ended with code {code}", error.get("why")
            failed[command_line.title] = f"{what}: {why}" if why else what
        mark = console.symbol("failed" if code else "ran")
        console.line(f"{mark} {command_line.title}  {'failed' if code else 'ran'}  {duration(seconds)}")

    shares = core_shares(cores, machine.usable_cpu(), at_once)
    with store.scratch() as folder:
        run_command_lines(command_lines, at_once, shares, folder, finished)
    return failed


def _is_stale(run: PlannedRun, store: Store) -> bool:
    return make_plan(run.profile, store, only="distill")[-1].status == "stale"


def _words(run: PlannedRun, store: Store) -> tuple[str, ...]:
    sets = [word for override in run.profile.overrides for word in ("--set", override)]
    return ("distill", str(run.profile.path), *sets, "--store", str(store.root), "--json", "--no-progress")
