"""The books of a run: what became of each stage so far, and who is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pipeline.errors import KdpipeError
from pipeline.running.plan import Decision, Facts, Profile, Reason, decide, forced
from pipeline.stage import Context, Metrics, Progress, Stage, StageRecord
from pipeline.store.manifest import Manifest
from pipeline.store.store import Store

if TYPE_CHECKING:
    from pipeline.store.remote import Remote

Execute = Callable[[Stage, Context], Metrics]
"""What calls a stage's function, here or elsewhere."""

Status = Literal["hit", "ran", "stale", "failed", "not_built", "skipped"]


@dataclass(frozen=True)
class StageResult:
    """What became of a stage. `seconds` is what it took in this run (0.0 for a hit)."""

    name: str
    status: Status
    key: str | None = None
    digest: str | None = None
    path: Path | None = None
    seconds: float = 0.0
    reasons: tuple[Reason, ...] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict)


class Listener(Protocol):
    """Who is told how a run goes."""

    def started(self, decision: Decision, /) -> None:
        """A stage begins to work (a hit only finishes)."""

    def progress(self, stage_name: str, /) -> Progress:
        """The progress reporter to hand to the stage."""

    def finished(self, result: StageResult, /) -> None:
        """A stage is up to date, or has failed. Told again if its artefact had to be remade."""

    def note(self, text: str, /) -> None:
        """One line worth knowing."""

    def waiting(self, stage_name: str, holder_text: str, /) -> None:
        """Another process is making the artefact; `holder_text` names its host and process."""


@dataclass
class Books:
    """One run: what it is about, and what is done.

    force: the stages that are still to run whatever the store holds.
    execute: calls a stage's function.
    done: by stage name, in order, the result and the artefact.
    current: the stage that is being looked at; decision: what was decided of it; begun: when it
        began to work (monotonic seconds).
    """

    profile: Profile
    store: Store
    listener: Listener
    remote: Remote | None
    chosen: list[Stage]
    force: set[str]
    facts: Facts
    execute: Execute
    done: dict[str, tuple[StageResult, Manifest]] = field(default_factory=dict)
    current: Stage | None = None
    decision: Decision | None = None
    begun: float | None = None

    def turn_to(self, stage: Stage | None) -> None:
        self.current, self.decision, self.begun = stage, None, None

    def decide(self, stage: Stage) -> Decision:
        """The decision on a stage whose inputs are all done."""
        digests = {name: manifest.digest for name, (_, manifest) in self.done.items()}
        decision = decide(stage, self.profile, self.store, digests, facts=self.facts)
        self.decision = forced(decision) if stage.name in self.force else decision
        return self.decision

    def key(self, name: str) -> str:
        return self.done[name][1].key

    def results(self) -> list[StageResult]:
        return [self.done[stage.name][0] for stage in self.chosen if stage.name in self.done]

    def history(self) -> tuple[StageRecord, ...]:
        """The stages before the current one; a reused artefact tells what making it took."""
        names = [stage.name for stage in self.chosen]
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

    def close(self, error: BaseException) -> list[StageResult]:
        """The results of a run that ended in an error: those so far, the stage that failed (it is
        told, too), and the rest as skipped."""
        if self.current is None:
            return self.results()
        failed = StageResult(
            name=self.current.name,
            status="failed",
            key=self.decision.key if self.decision else None,
            seconds=time.monotonic() - self.begun if self.begun is not None else 0.0,
            reasons=self.decision.reasons if self.decision else (),
        )
        if isinstance(error, KdpipeError):
            self.listener.finished(failed)
        results = []
        for stage in self.chosen:
            if stage is self.current:
                results.append(failed)
            elif stage.name in self.done:
                results.append(self.done[stage.name][0])
            else:
                results.append(StageResult(name=stage.name, status="skipped"))
        return results
