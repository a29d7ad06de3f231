"""The entries of the JSON documents of plans and runs, and reasons as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.console.tables import short

if TYPE_CHECKING:
    from pipeline.running.plan import Decision, Reason
    from pipeline.running.run_state import StageResult

REASONS_SHOWN = 8


def planned_entry(decision: Decision) -> dict[str, Any]:
    """Return the entry of a stage in a plan; `seconds` is 0 if it is cached, otherwise the estimate."""
    return {
        "name": decision.stage.name,
        "status": decision.status,
        "key": decision.key,
        "digest": decision.digest,
        "path": _path(decision.path),
        "seconds": 0.0 if decision.status == "hit" else decision.seconds_estimate,
        "seconds_estimate": decision.seconds_estimate,
        "reasons": [reason_entry(reason) for reason in decision.reasons],
        "metrics": dict(decision.manifest.metrics) if decision.manifest else {},
    }


def result_entry(result: StageResult) -> dict[str, Any]:
    """Return the entry of a stage in a run; `seconds` is the time that it took in this run."""
    return {
        "name": result.name,
        "status": result.status,
        "key": result.key,
        "digest": result.digest,
        "path": _path(result.path),
        "seconds": result.seconds,
        "reasons": [reason_entry(reason) for reason in result.reasons],
        "metrics": dict(result.metrics),
    }


def reason_entry(reason: Reason) -> dict[str, Any]:
    """Return the entry of a reason."""
    return {"kind": reason.kind, "key": reason.key, "old": reason.old, "new": reason.new}


def reasons_in_words(reasons: Sequence[Reason], to: str, every: bool = False) -> list[str]:
    """Return a line for each reason.

    Args:
        reasons: Why a stage is stale.
        to: The symbol between the old and the new value.
        every: Whether all reasons are listed, or about REASONS_SHOWN of them.
    """
    lines = [reason_in_words(reason, to) for reason in reasons]
    if every or len(lines) <= REASONS_SHOWN + 1:
        return lines
    return [*lines[:REASONS_SHOWN], f"and {len(lines) - REASONS_SHOWN} more (-v shows all)"]


def reason_in_words(reason: Reason, to: str) -> str:
    """Return in one line why a stage is stale: what changed, the old and the new value."""
    change = f"{short(reason.old)} {to} {short(reason.new)}"
    if reason.kind == "absent":
        return f"{reason.key}: {change}" if reason.key else "not made yet"
    if reason.kind == "forced":
        return "forced"
    if reason.kind == "damaged":
        return f"damaged: {reason.key}"
    if reason.kind == "input" and reason.new is None:
        return f"input {reason.key} is stale"
    if reason.kind == "version":
        return _version_in_words(reason, change)
    if reason.kind == "data":
        return f"the data set: {change}"
    if reason.kind == "library":
        old, new = (short(value) if value else "not installed" for value in (reason.old, reason.new))
        return f"library {reason.key}: {old} {to} {new}"
    return f"{reason.kind} {reason.key}: {change}"


def _version_in_words(reason: Reason, change: str) -> str:
    if reason.key == "libraries":
        return "kdpipe's own version: the earlier artefact records no library versions"
    if reason.key == "sections":
        return "kdpipe's own version: the stage reads other settings than it did"
    return f"kdpipe's own version of the stage: {change}"


def _path(path: Any) -> str | None:
    return None if path is None else str(path)
