"""Bring a profile up to date: the one place where the commands call the runner."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

from pipeline.commands.profiles import remember_profile
from pipeline.console.console import guarded_output
from pipeline.console.session import Session
from stages import STAGES

if TYPE_CHECKING:
    from pipeline.profile.loading import LoadedProfile
    from pipeline.running.run_state import Execute, Listener, RunOutcome
    from pipeline.store.store import Store


def bring_up_to_date(
    session: Session,
    loaded: LoadedProfile,
    store: Store,
    *,
    until: str | None = None,
    only: str | None = None,
    force: Sequence[str] = (),
    remote: str | None = None,
    on: str | None = None,
    strict: bool = False,
    listener: Listener | None = None,
) -> RunOutcome:
    """Bring the stages of a profile up to date, and cache the validated profile if that succeeds.

    `session.results` returns the results so far, also after an interrupt.

    Args:
        session: The call of the command line.
        loaded: The profile.
        store: Where its artefacts are.
        until: The last stage of the run; None for all.
        only: Only this stage and the stages that it needs.
        force: Stages that run even if they are cached.
        remote: The URL of a store to pull from and to push to.
        on: The address of a Ray cluster that runs the stages; None for this process.
        strict: Whether an undecided gate counts as missed.
        listener: Receives the events of the run; None for the console's progress lines.

    Returns:
        The results, with the error that ended the run. The caller decides what to do about the error.

    Raises:
        UsageError: A stage's name, the remote or the cluster's address cannot be used.
    """
    from pipeline.running.runner import in_process, prepare_run, run_stages

    session.resumable = True
    with ExitStack() as stack:
        stack.enter_context(guarded_output())
        execute: Execute = in_process
        if on is not None:
            from pipeline.cluster.cluster import Cluster

            execute = stack.enter_context(closing(Cluster(on, loaded))).execute
        if listener is None:
            from pipeline.console.progress import ConsoleListener

            names = tuple(stage.name for stage in STAGES)
            listener = stack.enter_context(ConsoleListener(session.console, names))
        shared = None
        if remote is not None:
            from pipeline.store.remote import Remote

            shared = Remote(remote)
        state = prepare_run(
            loaded, store, listener, until=until, only=only, force=force, remote=shared, execute=execute
        )
        session.results = state.results
        outcome = run_stages(state, strict=strict)
    if outcome.is_complete:
        remember_profile(loaded, store)
    return outcome
