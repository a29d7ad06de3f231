"""The state of a run, its listener, and its outcome."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pipeline.errors import GateMissed, KdpipeError, MachineCannot
from pipeline.running.key_facts import KeyFacts, Profile
from pipeline.running.plan import Decision, Reason, as_forced, decide
from pipeline.stage import Context, Metrics, Progress, Stage, StageRecord
from pipeline.store.manifest import Manifest
from pipeline.store.store import Store

if TYPE_CHECKING:
    from pipeline.store.remote import Remote

Execute = Callable[[Stage, Context], Metrics]
"""Calls a stage's function, in this process or in another one."""

Status = Literal["hit", "ran", "stale", "failed", "not_built", "skipped"]


@dataclass(frozen=True)
class StageResult:
    """The result of one stage. `seconds` is the time that it took in this run (0.0 for a hit)."""

    name: str
    status: Status
    key: str | None = None
    digest: str | None = None
    path: Path | None = None
    seconds: float = 0.0
    reasons: tuple[Reason, ...] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunOutcome:
    """The results of a run, and the error that ended it.

    Attributes:
        results: One for each stage, in order; the failed one and the skipped ones included. Empty if the
            run ended before its first stage.
        error: None if the run succeeded. A missed gate and a required target that this machine cannot
            build are errors of a complete run.
    """

    results: tuple[StageResult, ...]
    error: KdpipeError | None = None

    @property
    def is_complete(self) -> bool:
        """Whether every stage has its artefact, and no error but a missed gate or a missing target."""
        has_artefacts = bool(self.results) and all(result.path is not None for result in self.results)
        return has_artefacts and (self.error is None or isinstance(self.error, GateMissed | MachineCannot))

    @property
    def failed(self) -> StageResult | None:
        """The result of the stage that failed."""
        return next((result for result in self.results if result.status == "failed"), None)

    def raise_for_result(self) -> None:
        """Raise the error that ended the run.

        Raises:
            KdpipeError: The run ended in an error, even if every stage has its artefact.
        """
        if self.error is not None:
            raise self.error

    def raise_if_incomplete(self) -> None:
        """Raise the error that ended the run, unless the run is complete.

        Raises:
            KdpipeError: The run ended before every stage had its artefact.
        """
        if not self.is_complete:
            self.raise_for_result()


class Listener(Protocol):
    """Receives the events of a run."""

    def started(self, decision: Decision, /) -> None:
        """Report that a stage starts to work. A hit is only reported as finished."""

    def progress(self, stage_name: str, /) -> Progress:
        """Return the progress reporter of a stage."""

    def finished(self, result: StageResult, /) -> None:
        """Report that a stage is up to date or failed; again if its artefact had to be remade."""

    def note(self, text: str, /) -> None:
        """Print one line of information."""

    def waiting(self, stage_name: str, holder_text: str, /) -> None:
        """Report that another process makes the artefact; `holder_text` is its host and process."""


@dataclass
class RunState:
    """The state of one run. The runner fills it, so that the results outlive any error.

    Attributes:
        profile: The profile to bring up to date.
        store: Where its artefacts are.
        listener: Receives the events of the run.
        remote: A store to pull from and to push to.
        stages: The selected stages, in order.
        force: The stages that still have to run even if they are cached.
        facts: The data, files and machine that the keys depend on.
        execute: Calls a stage's function.
        done: By stage name, in order of completion: the result and the artefact's manifest.
        current: The selected stage.
        decision: The decision on the selected stage.
        started_at: When the selected stage started to work, in monotonic seconds.
        failed: The result of the stage at which the run ended early.
    """

    profile: Profile
    store: Store
    listener: Listener
    remote: Remote | None
    stages: list[Stage]
    force: set[str]
    facts: KeyFacts
    execute: Execute
    done: dict[str, tuple[StageResult, Manifest]] = field(default_factory=dict)
    current: Stage | None = None
    decision: Decision | None = None
    started_at: float | None = None
    failed: StageResult | None = None

    def select_stage(self, stage: Stage | None) -> None:
        """Make `stage` the current one; None if no stage is worked on."""
        self.current, self.decision, self.started_at = stage, None, None

    def decide(self, stage: Stage) -> Decision:
        """Decide whether a stage, whose inputs are all done, can be reused."""
        digests = {name: manifest.digest for name, (_, manifest) in self.done.items()}
        decision = decide(stage, self.profile, self.store, digests, facts=self.facts)
        self.decision = as_forced(decision) if stage.name in self.force else decision
        return self.decision

    def key(self, name: str) -> str:
        """Return the key of a finished stage's artefact."""
        return self.done[name][1].key

    def results(self) -> list[StageResult]:
        """Return the results so far, in the order of the stages.

        Returns:
            While the run goes on, and after a complete run: one result for each finished stage. After a
            run that ended at a stage: one for every stage, `failed` for that one and `skipped` for those
            that were not reached.
        """
        if self.failed is None:
            return [self.done[stage.name][0] for stage in self.stages if stage.name in self.done]
        results = []
        for stage in self.stages:
            if stage.name == self.failed.name:
                results.append(self.failed)
            elif stage.name in self.done:
                results.append(self.done[stage.name][0])
            else:
                results.append(StageResult(name=stage.name, status="skipped"))
        return results

    def history(self) -> tuple[StageRecord, ...]:
        """Return the stages before the current one, each with the seconds that making it took."""
        names = [stage.name for stage in self.stages]
        before = names[: names.index(self.current.name)] if self.current else names
        return tuple(
            StageRecord(
                name=result.name,
                status=result.status,
                seconds=manifest.seconds,
                key=manifest.key,
                metrics=manifest.metrics,
            )
            for result, manifest in (self.done[name] for name in before)
        )

    def end(self, error: BaseException) -> None:
        """Record that `error` ended the run; the current stage, if any, becomes the failed one.

        Args:
            error: A KdpipeError is also reported to the listener; interrupts and defects are not.
        """
        if self.current is None:
            return
        self.failed = StageResult(
            name=self.current.name,
            status="failed",
            key=self.decision.key if self.decision else None,
            seconds=time.monotonic() - self.started_at if self.started_at is not None else 0.0,
            reasons=self.decision.reasons if self.decision else (),
        )
        if isinstance(error, KdpipeError):
            self.listener.finished(self.failed)
