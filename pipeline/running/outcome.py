"""Errors of a complete run: a missed gate, or a required target that could not be built."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.errors import GateMissed, KdpipeError, MachineCannot

if TYPE_CHECKING:
    from pipeline.running.key_facts import Profile
    from pipeline.running.run_state import StageResult


def error_for_results(
    results: Sequence[StageResult], profile: Profile, *, strict: bool
) -> KdpipeError | None:
    """Return the error of a complete run, or None if it met every requirement.

    The missed gate comes first: it was measured, whereas another machine may be able to build the target.

    Args:
        results: The results of every stage. Their metrics `gates_missed` and `gates_undecided` are lists of
            sentences, `machine_cannot` is a list of mappings with `target`, `why` and `hint`.
        profile: The profile of the run, for the hint.
        strict: Whether an undecided gate counts as missed.

    Returns:
        GateMissed, otherwise MachineCannot, otherwise None.
    """
    return _gate_missed(results, profile, strict) or _machine_cannot(results)


def _gate_missed(results: Sequence[StageResult], profile: Profile, strict: bool) -> KdpipeError | None:
    missed = [text for result in results for text in result.metrics.get("gates_missed") or ()]
    undecided = [text for result in results for text in result.metrics.get("gates_undecided") or ()]
    if not missed and not (strict and undecided):
        return None
    counts = [_counted(len(missed), "missed")] if missed else []
    if strict and undecided:
        counts.append(_counted(len(undecided), "undecided, which --strict counts as missed"))
    return GateMissed(
        "; ".join(counts),
        where="stage gate",
        why="\n".join(missed + (undecided if strict else [])),
        hint=f"kdpipe pick {profile.path} names the target that passes, if there is one",
    )


def _counted(count: int, verdict: str) -> str:
    return f"1 gate was {verdict}" if count == 1 else f"{count} gates were {verdict}"


def _machine_cannot(results: Sequence[StageResult]) -> KdpipeError | None:
    for result in results:
        targets = result.metrics.get("machine_cannot") or []
        if not targets:
            continue
        names = ", ".join(target["target"] for target in targets)
        hints = dict.fromkeys(target["hint"] for target in targets if target.get("hint"))
        return MachineCannot(
            f"This machine cannot build {names}, which the profile requires",
            where=f"stage {result.name}",
            why="; ".join(f"{target['target']}: {target['why']}" for target in targets),
            hint="; ".join(hints) or "run on a machine that can, or leave out `required`",
        )
    return None
