"""Bring the stages of a profile up to date, one after the other.

    results = run(profile, store, listener)

is `run_stages(prepare_run(profile, store, listener))` and raises the error that ended the run. A caller that
needs the results of a run that ended early calls the two functions: `RunState.results` has the results so far
after any exception.
"""

from __future__ import annotations

import importlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

import stages as stage_table
from pipeline.errors import KdpipeError, StageError
from pipeline.running.key_facts import KeyFacts, Profile, stage_for_profile
from pipeline.running.outcome import error_for_results
from pipeline.running.plan import Decision, make_plan, profile_entry
from pipeline.running.run_state import Execute, Listener, RunOutcome, RunState, StageResult
from pipeline.running.stage_selection import needed_stages, select_stages
from pipeline.stage import Context, Metrics, Stage
from pipeline.store.disk import FULL, refusal
from pipeline.store.manifest import Manifest
from pipeline.store.store import Store

if TYPE_CHECKING:
    from pipeline.store.remote import Remote

__all__ = [
    "Execute",
    "Listener",
    "RunOutcome",
    "RunState",
    "StageResult",
    "in_process",
    "needed_stages",
    "prepare_run",
    "run",
    "run_stages",
]

REMAKES = 3
"""How often one run remakes a damaged artefact before it reports the disk as faulty."""


class _DamagedInputs(Exception):  # noqa: N818 - handled here: the run goes back to these stages
    def __init__(self, names: list[str]) -> None:
        super().__init__(", ".join(names))
        self.names = names


def in_process(stage: Stage, context: Context) -> Metrics:
    """Call a stage's function in this process.

    Args:
        stage: The stage to run.
        context: Its settings, folders and progress reporter.

    Returns:
        The metrics of the stage.

    Raises:
        TypeError: The stage did not return a dictionary.
    """
    module = _stage_module(stage)
    metrics = module.run(context)
    if not isinstance(metrics, dict):
        raise TypeError(f"{module.__name__}.run returned {type(metrics).__name__}, not its metrics")
    return metrics


def run(
    profile: Profile,
    store: Store,
    listener: Listener,
    *,
    until: str | None = None,
    only: str | None = None,
    force: Sequence[str] = (),
    remote: Remote | None = None,
    execute: Execute = in_process,
    stages: Sequence[Stage] = stage_table.STAGES,
    strict: bool = False,
) -> list[StageResult]:
    """Bring stages up to date, and raise the error that ends the run.

    Args:
        profile: The profile to bring up to date.
        store: Where its artefacts are.
        listener: Receives the events of the run.
        until: The last stage of the run; None for all.
        only: Only this stage and the stages that it needs.
        force: Stages that run even if they are cached.
        remote: A store to pull from before a stage runs, and to push to afterwards.
        execute: Calls the function of a stage; everything else happens in this process.
        stages: The table of stages.
        strict: Whether an undecided gate counts as missed.

    Returns:
        One result for each stage, in order.

    Raises:
        UsageError: A stage's name, the profile or its data are invalid. Nothing was written.
        StageError: A stage failed.
        GateMissed: Every stage is up to date, and a gate was missed.
        MachineCannot: Every stage is up to date, except for a required target that was not built.
    """
    state = prepare_run(
        profile,
        store,
        listener,
        until=until,
        only=only,
        force=force,
        remote=remote,
        execute=execute,
        stages=stages,
    )
    outcome = run_stages(state, strict=strict)
    outcome.raise_for_result()
    return list(outcome.results)


def prepare_run(
    profile: Profile,
    store: Store,
    listener: Listener,
    *,
    until: str | None = None,
    only: str | None = None,
    force: Sequence[str] = (),
    remote: Remote | None = None,
    execute: Execute = in_process,
    stages: Sequence[Stage] = stage_table.STAGES,
) -> RunState:
    """Select the stages of a run. See `run` for the arguments.

    Returns:
        The state to hand to `run_stages`.

    Raises:
        UsageError: A stage's name is unknown, or a forced stage is not in this run.
    """
    stages = [stage_for_profile(stage, profile) for stage in stages]
    selected = select_stages(stages, until=until, only=only, force=force)
    return RunState(profile, store, listener, remote, selected, set(force), KeyFacts(profile, store), execute)


def run_stages(state: RunState, *, strict: bool = False) -> RunOutcome:
    """Bring every stage of a prepared run up to date.

    Args:
        state: A new state of `prepare_run`; its `results` are complete after any exception.
        strict: Whether an undecided gate counts as missed.

    Returns:
        The results, with the error that ended the run. Profile and data errors come before anything is
        written; a missed gate and a target that could not be built come after everything else is done.

    Raises:
        KeyboardInterrupt: The user ended the run.
        Exception: A defect of kdpipe, outside of the stages.
    """
    store = state.store
    try:
        plan = make_plan(
            state.profile, store, force=tuple(state.force), stages=state.stages, facts=state.facts
        )
        _check_settings(state, plan)
        if state.remote:
            state.remote.check()
        store.sweep()
        _bring_up_to_date(state)
        if store.root.exists():
            store.digests.save()
    except BaseException as error:
        store.undo()
        state.end(error)
        if not isinstance(error, KdpipeError):
            raise
        return RunOutcome(tuple(state.results()), error)
    finally:
        store.release()
    results = tuple(state.results())
    return RunOutcome(results, error_for_results(results, state.profile, strict=strict))


def _check_settings(state: RunState, plan: list[Decision]) -> None:
    """Call the `check` function of every stage that may have to run, before anything is written."""
    for decision in plan:
        if decision.status == "hit":
            continue
        stage = decision.stage
        state.select_stage(stage)
        module = _with_stage_errors(state, stage, lambda: _stage_module(stage))  # noqa: B023
        check = getattr(module, "check", None)
        if check:
            _with_stage_errors(state, stage, lambda: check(state.profile.settings(stage.reads)))  # noqa: B023
    state.select_stage(None)


def _bring_up_to_date(state: RunState) -> None:
    positions = {stage.name: position for position, stage in enumerate(state.stages)}
    remakes: Counter[str] = Counter()
    position = 0
    while position < len(state.stages):
        stage = state.stages[position]
        state.select_stage(stage)
        try:
            result, manifest = _bring_stage_up_to_date(state, stage)
        except _DamagedInputs as damaged:
            remakes.update(damaged.names)
            for name in damaged.names:
                _set_aside_input(state, name, remakes[name])
            position = min(positions[name] for name in damaged.names)
            continue
        before = state.done.get(stage.name)
        if before and before[1].digest == manifest.digest and result.status == "hit":
            result = before[0]  # visited again after a remade input; the listener has its result
        else:
            state.listener.finished(result)
        state.done[stage.name] = (result, manifest)
        position += 1
    state.select_stage(None)


def _bring_stage_up_to_date(state: RunState, stage: Stage) -> tuple[StageResult, Manifest]:
    """Reuse a stage's artefact, wait for another process that makes it, pull it, or make it."""
    decision = state.decide(stage)
    if decision.manifest:
        return _reuse(state, decision, decision.manifest)
    assert decision.key is not None  # its inputs are all done
    state.store.prepare()
    state.store.digests.save()
    with state.store.lock(
        stage.name, decision.key, lambda holder: state.listener.waiting(stage.name, holder)
    ):
        locked_decision = state.decide(stage)
        if locked_decision.manifest:
            return _reuse(state, locked_decision, locked_decision.manifest)
        _set_aside_own(state, locked_decision)
        if stage.name not in state.force and _pull(state, locked_decision):
            pulled = state.decide(stage)
            if pulled.manifest:
                return _reuse(state, pulled, pulled.manifest)
        damaged = []
        for name in stage.inputs:
            if damage := state.store.verify(name, state.key(name)):
                state.listener.note(f"{name}: the artefact is damaged: {damage}")
                damaged.append(name)
        if damaged:
            raise _DamagedInputs(damaged)
        result, manifest = _make(state, locked_decision)
    state.force.discard(stage.name)
    _push(state, stage.name, manifest.key)
    return result, manifest


def _reuse(state: RunState, decision: Decision, manifest: Manifest) -> tuple[StageResult, Manifest]:
    _push(state, decision.stage.name, manifest.key)
    result = StageResult(
        name=decision.stage.name,
        status="hit",
        key=decision.key,
        digest=decision.digest,
        path=decision.path,
        metrics=manifest.metrics,
    )
    return result, manifest


def _make(state: RunState, decision: Decision) -> tuple[StageResult, Manifest]:
    """Run a stage and publish its artefact."""
    stage, key, store = decision.stage, decision.key, state.store
    assert key is not None
    state.listener.started(decision)
    is_forced = stage.name in state.force
    work = store.open_work(stage.name, key, start_over=is_forced)
    done = False
    started_at = state.started_at = time.monotonic()
    try:
        with store.scratch() as output:
            context = Context(
                settings=state.profile.settings(stage.reads),
                inputs={name: store.artefact_path(name, state.key(name)) for name in stage.inputs},
                output=output,
                work=work,
                progress=state.listener.progress(stage.name),
                history=state.history() if stage.reads_history else (),
            )
            metrics = _with_stage_errors(state, stage, lambda: state.execute(stage, context))
            _check_unchanged(state, decision)
            manifest = store.publish(
                output,
                stage=stage.name,
                version=stage.version,
                key_parts=decision.key_parts,
                inputs={
                    name: {"key": state.key(name), "digest": state.done[name][1].digest}
                    for name in stage.inputs
                },
                metrics=metrics,
                seconds=time.monotonic() - started_at,
                profile=profile_entry(state.profile),
                replacing=is_forced,
            )
            done = True
    finally:
        store.close_work(stage.name, key, done=done)
    result = StageResult(
        name=stage.name,
        status="ran",
        key=key,
        digest=manifest.digest,
        path=store.artefact_path(stage.name, key),
        seconds=time.monotonic() - started_at,
        reasons=decision.reasons,
        metrics=manifest.metrics,
    )
    return result, manifest


def _stage_module(stage: Stage) -> ModuleType:
    return importlib.import_module(stage.module)


def _with_stage_errors(state: RunState, stage: Stage, call: Callable[[], Any]) -> Any:
    """Return what `call` returns; turn an unexpected exception into a StageError with a log."""
    try:
        return call()
    except KdpipeError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise refusal(error, state.store.root) from error
        import traceback

        text = "".join(traceback.format_exception(error))
        try:
            log = f"the traceback is in {state.store.write_log(stage.name, text)}"
        except KdpipeError as refused:
            log = f"the traceback could not be written: {refused.why}"
        raise StageError(
            f"Stage {stage.name} failed unexpectedly",
            where=f"stage {stage.name}; {log}",
            why=f"{type(error).__name__}: {error}".strip(": "),
            hint="run again; if it fails again, report it with the log",
        ) from error


def _check_unchanged(state: RunState, decision: Decision) -> None:
    """Check that the data and files in the key did not change while the stage ran.

    Raises:
        StageError: They changed, so the key does not describe the artefact.
    """
    stage = decision.stage
    if not stage.data and not any(decision.key_parts["files"].values()):
        return
    now = KeyFacts(state.profile, state.store).of(
        replace(stage, machine=None, libraries=(), conditional=None)
    )
    for part, name in (("data", "data set"), ("files", "file of weights")):
        if now[part] != decision.key_parts[part]:
            raise StageError(
                f"The {name} changed while stage {stage.name} was running",
                where=f"stage {stage.name}",
                why=f"{part}: {decision.key_parts[part]} at the beginning, {now[part]} at the end",
                hint="run again when no other process writes to it",
            )


def _set_aside_own(state: RunState, decision: Decision) -> None:
    """Set aside an artefact at this key that is damaged or in a newer format."""
    stage, key = decision.stage.name, decision.key
    assert key is not None
    inspection = state.store.inspect(stage, key)
    if inspection.damage:
        problem = f"the artefact is damaged: {inspection.damage}"
    elif inspection.newer:
        problem = f"the artefact was written by a newer kdpipe (schema {inspection.newer})"
    else:
        return
    if folder := state.store.set_aside(stage, key):
        state.listener.note(f"{stage}: {problem}; it was set aside in {folder}")


def _set_aside_input(state: RunState, name: str, times: int) -> None:
    """Set aside a damaged input, unless another run remade it in the meantime.

    Raises:
        StageError: It was damaged more than REMAKES times in this run.
    """
    key = state.key(name)
    with state.store.lock(name, key, lambda holder: state.listener.waiting(name, holder)):
        damage = state.store.verify(name, key)
        if not damage:
            return
        folder = state.store.set_aside(name, key)
    state.listener.note(f"{name}: set aside in {folder}; it is made again")
    if times > REMAKES:
        raise StageError(
            f"The artefact of stage {name} is damaged again and again",
            where=str(folder),
            why=str(damage),
            hint="check the disk and its file system, or name a store on another disk with --store",
        )


def _pull(state: RunState, decision: Decision) -> bool:
    stage, key = decision.stage.name, decision.key
    assert key is not None
    if not state.remote or not state.remote.pull(stage, key, state.store, state.listener.note):
        return False
    state.listener.note(f"{stage}: pulled from {state.remote.url}")
    return True


def _push(state: RunState, name: str, key: str) -> None:
    if state.remote and state.remote.push(name, key, state.store, state.listener.note):
        state.listener.note(f"{name}: pushed to {state.remote.url}")
