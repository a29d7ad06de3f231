"""Brings stages up to date, one after the other, and keeps the books whatever happens."""

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
from pipeline.running.outcome import raise_if_wanting
from pipeline.running.plan import Decision, Facts, Profile, made_for, make_plan, needed, select
from pipeline.running.run_state import Books, Execute, Listener, StageResult
from pipeline.stage import Context, Metrics, Stage
from pipeline.store.disk import FULL, refusal
from pipeline.store.manifest import Manifest
from pipeline.store.store import Store

if TYPE_CHECKING:
    from pipeline.store.remote import Remote

__all__ = ["Execute", "Listener", "StageResult", "in_process", "needed", "run"]

REMAKES = 3
"""How often an artefact may be found damaged in one run before we blame the disk."""


class _DamagedInputs(Exception):  # noqa: N818 - a way back, not an error
    def __init__(self, names: list[str]) -> None:
        super().__init__(", ".join(names))
        self.names = names


def in_process(stage: Stage, context: Context) -> Metrics:
    """Calls a stage's function in this process."""
    module = _load(stage)
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
    """Brings all stages up to date, or those up to `until`, or `only` one and what it needs.

    force: stages that run whatever the store holds.
    remote: pulled from before a stage would run, pushed to afterwards.
    execute: calls the function of a stage that has to run; all else happens here.
    strict: an undecided gate counts as a missed one.

    Raises KdpipeError (or KeyboardInterrupt) with the attribute `results`: those so far, the one
    that failed, and the rest as skipped. What a wrong profile or missing data is to blame for is
    raised before anything is written. At the end, with all else done, raises GateMissed if a gate was
    missed, or MachineCannot if a required target could not be built.
    """
    chosen = select(stages, until=until, only=only, force=force)
    books = Books(profile, store, listener, remote, chosen, set(force), Facts(profile, store), execute)
    try:
        plan = make_plan(
            profile, store, until=until, only=only, force=force, stages=stages, facts=books.facts
        )
        _check_settings(books, plan)
        if remote:
            remote.check()
        store.sweep()
        _bring_up_to_date(books)
        if store.root.exists():
            store.digests.save()
    except BaseException as error:
        store.undo()
        error.results = books.close(error)  # type: ignore[attr-defined]
        raise
    finally:
        store.release()
    results = books.results()
    raise_if_wanting(results, profile, strict=strict)
    return results


def _check_settings(books: Books, plan: list[Decision]) -> None:
    """Asks every stage that may have to run whether it could, before anything is touched."""
    for decision in plan:
        if decision.status == "hit":
            continue
        stage = decision.stage
        books.turn_to(stage)
        check = getattr(_guarded(books, stage, lambda: _load(stage)), "check", None)  # noqa: B023
        if check:
            _guarded(books, stage, lambda: check(books.profile.settings(stage.reads)))  # noqa: B023
    books.turn_to(None)


def _bring_up_to_date(books: Books) -> None:
    positions = {stage.name: position for position, stage in enumerate(books.chosen)}
    remade: Counter[str] = Counter()
    position = 0
    while position < len(books.chosen):
        stage = books.chosen[position]
        books.turn_to(stage)
        try:
            result, manifest = _one(books, stage)
        except _DamagedInputs as damaged:
            remade.update(damaged.names)
            for name in damaged.names:
                _set_aside_input(books, name, remade[name])
            position = min(positions[name] for name in damaged.names)
            continue
        before = books.done.get(stage.name)
        if before and before[1].digest == manifest.digest and result.status == "hit":
            result = before[0]  # passed again on the way from a remade input; told already
        else:
            books.listener.finished(result)
        books.done[stage.name] = (result, manifest)
        position += 1
    books.turn_to(None)


def _one(books: Books, stage: Stage) -> tuple[StageResult, Manifest]:
    """Reuses a stage's artefact, waits for another process that makes it, pulls it, or makes it."""
    decision = books.decide(stage)
    if decision.manifest:
        return _hit(books, decision, decision.manifest)
    assert decision.key is not None  # its inputs are all done
    books.store.prepare()
    books.store.digests.save()
    with books.store.lock(
        stage.name, decision.key, lambda holder: books.listener.waiting(stage.name, holder)
    ):
        again = books.decide(stage)
        if again.manifest:
            return _hit(books, again, again.manifest)
        _set_aside_own(books, again)
        if stage.name not in books.force and _pull(books, again):
            pulled = books.decide(stage)
            if pulled.manifest:
                return _hit(books, pulled, pulled.manifest)
        damaged = []
        for name in stage.inputs:
            if damage := books.store.verify(name, books.key(name)):
                books.listener.note(f"{name}: the artefact is damaged: {damage}")
                damaged.append(name)
        if damaged:
            raise _DamagedInputs(damaged)
        result, manifest = _make(books, again)
    books.force.discard(stage.name)
    _push(books, stage.name, manifest.key)
    return result, manifest


def _hit(books: Books, decision: Decision, manifest: Manifest) -> tuple[StageResult, Manifest]:
    _push(books, decision.stage.name, manifest.key)
    result = StageResult(
        name=decision.stage.name,
        status="hit",
        key=decision.key,
        digest=decision.digest,
        path=decision.path,
        metrics=manifest.metrics,
    )
    return result, manifest


def _make(books: Books, decision: Decision) -> tuple[StageResult, Manifest]:
    stage, key, store = decision.stage, decision.key, books.store
    assert key is not None
    books.listener.started(decision)
    is_forced = stage.name in books.force
    work = store.open_work(stage.name, key, anew=is_forced)
    done = False
    begun = books.begun = time.monotonic()
    try:
        with store.scratch() as output:
            context = Context(
                settings=books.profile.settings(stage.reads),
                inputs={name: store.artefact_path(name, books.key(name)) for name in stage.inputs},
                output=output,
                work=work,
                progress=books.listener.progress(stage.name),
                history=books.history() if stage.tells_history else (),
            )
            metrics = _guarded(books, stage, lambda: books.execute(stage, context))
            _confirm(books, decision)
            manifest = store.publish(
                output,
                stage=stage.name,
                version=stage.version,
                key_parts=decision.key_parts,
                inputs={
                    name: {"key": books.key(name), "digest": books.done[name][1].digest}
                    for name in stage.inputs
                },
                metrics=metrics,
                seconds=time.monotonic() - begun,
                profile=made_for(books.profile),
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
        seconds=time.monotonic() - begun,
        reasons=decision.reasons,
        metrics=manifest.metrics,
    )
    return result, manifest


def _load(stage: Stage) -> ModuleType:
    return importlib.import_module(stage.module)


def _guarded(books: Books, stage: Stage, work: Callable[[], Any]) -> Any:
    """What a stage does; an exception that it did not foresee becomes a StageError with a log."""
    try:
        return work()
    except KdpipeError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise refusal(error, books.store.root) from error
        import traceback

        text = "".join(traceback.format_exception(error))
        try:
            log = f"the traceback is in {books.store.write_log(stage.name, text)}"
        except KdpipeError as refused:
            log = f"the traceback could not be kept: {refused.why}"
        said = f"{type(error).__name__}: {error}".strip(": ")
        raise StageError(
            f"Stage {stage.name} failed unexpectedly",
            where=f"stage {stage.name}; {log}",
            why=said,
            hint="run again; if it fails again, report it with the log",
        ) from error


def _confirm(books: Books, decision: Decision) -> None:
    """What the key says of data and files must hold at the end as well, or it would name a lie."""
    stage = decision.stage
    if not stage.data and not any(decision.key_parts["files"].values()):
        return
    now = Facts(books.profile, books.store).of(replace(stage, machine=None))
    for part, name in (("data", "data set"), ("files", "file of weights")):
        if now[part] != decision.key_parts[part]:
            raise StageError(
                f"The {name} changed while stage {stage.name} was running",
                where=f"stage {stage.name}",
                why=f"{part}: {decision.key_parts[part]} at the beginning, {now[part]} at the end",
                hint="run again when nothing writes to it any more",
            )


def _set_aside_own(books: Books, decision: Decision) -> None:
    """Makes room where a damaged artefact, or one in a newer format, lies at this key."""
    stage, key = decision.stage.name, decision.key
    assert key is not None
    found = books.store.inspect(stage, key)
    if found.damage:
        told = f"the artefact is damaged: {found.damage}"
    elif found.newer:
        told = f"the artefact was written by a newer kdpipe (schema {found.newer})"
    else:
        return
    if place := books.store.set_aside(stage, key):
        books.listener.note(f"{stage}: {told}; it was set aside in {place}")


def _set_aside_input(books: Books, name: str, times: int) -> None:
    key = books.key(name)
    with books.store.lock(name, key, lambda holder: books.listener.waiting(name, holder)):
        damage = books.store.verify(name, key)  # another run may have remade it by now
        if not damage:
            return
        place = books.store.set_aside(name, key)
    books.listener.note(f"{name}: set aside in {place}; it is made again")
    if times > REMAKES:
        raise StageError(
            f"The artefact of stage {name} is damaged again and again",
            where=str(place),
            why=str(damage),
            hint="check the disk and its file system, or name a store on another disk with --store",
        )


def _pull(books: Books, decision: Decision) -> bool:
    stage, key = decision.stage.name, decision.key
    assert key is not None
    if not books.remote or not books.remote.pull(stage, key, books.store, books.listener.note):
        return False
    books.listener.note(f"{stage}: pulled from {books.remote.url}")
    return True


def _push(books: Books, name: str, key: str) -> None:
    if books.remote and books.remote.push(name, key, books.store, books.listener.note):
        books.listener.note(f"{name}: pushed to {books.remote.url}")
