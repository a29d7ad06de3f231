"""Stages of a run and of a plan as typed values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from pipeline.console.json_documents import reason_in_words

SHOWN_REASONS = 3

Status = Literal["hit", "ran", "stale", "failed", "not_built", "skipped"]


@dataclass(frozen=True)
class Reason:
    """A reason why a stage had or has to run.

    Attributes:
        kind: `profile`, `input`, `version`, `data`, `file`, `machine`, `absent`, `damaged` or `forced`.
        key: What changed: a dotted key of the profile, an input stage, a file.
        old: Its value in the newest earlier artefact.
        new: Its value now.
    """

    kind: str
    key: str = ""
    old: Any = None
    new: Any = None

    def __str__(self) -> str:
        """Return the reason in one line."""
        return reason_in_words(cast("Any", self), "to")


@dataclass(frozen=True)
class StageResult:
    """The result of one stage of a run.

    Attributes:
        name: The stage.
        status: `hit` (cached), `ran`, `failed` or `skipped`.
        key: The artefact's key.
        digest: The artefact's content digest.
        path: The artefact's folder; None if there is no artefact.
        seconds: The time that it took in this run; 0 for a hit.
        reasons: Why it ran.
        metrics: The figures that the stage returned.
    """

    name: str
    status: Status
    key: str | None = None
    digest: str | None = None
    path: Path | None = None
    seconds: float = 0.0
    reasons: tuple[Reason, ...] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def from_document(cls, entry: Mapping[str, Any]) -> StageResult:
        """Return the stage of an entry of the JSON document."""
        return cls(
            name=entry["name"],
            status=entry["status"],
            key=entry["key"],
            digest=entry["digest"],
            path=None if entry["path"] is None else Path(entry["path"]),
            seconds=entry["seconds"],
            reasons=reasons_from(entry["reasons"]),
            metrics=dict(entry["metrics"]),
        )


def reasons_from(entries: Sequence[Mapping[str, Any]]) -> tuple[Reason, ...]:
    """Return the reasons of an entry of the JSON document."""
    return tuple(Reason(entry["kind"], entry["key"], entry["old"], entry["new"]) for entry in entries)


def reasons_in_short(reasons: Sequence[Reason]) -> str:
    """Return the first reasons, a line each, and how many more there are."""
    lines = [str(reason) for reason in reasons[:SHOWN_REASONS]]
    more = len(reasons) - SHOWN_REASONS
    return "\n".join([*lines, f"and {more} more"] if more > 0 else lines)
