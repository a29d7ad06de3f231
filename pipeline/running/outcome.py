"""What fails a run whose stages all did their work: a missed gate, a required target that was not built."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.errors import GateMissed, KdpipeError, MachineCannot

if TYPE_CHECKING:
    from pipeline.running.plan import Profile
    from pipeline.running.run_state import StageResult


def raise_if_wanting(results: Sequence[StageResult], profile: Profile, *, strict: bool) -> None:
    """Raises GateMissed, else MachineCannot, with the attribute `results`, if there is a reason to.

    A stage tells of them in its metrics: `gates_missed` and `gates_undecided` (sentences; the latter count
    if `strict`), `machine_cannot` (target, why, hint). The missed gate comes first: it was seen, while
    another machine may well build what this one cannot.
    """
    for error in (_gate_missed(results, profile, strict), _machine_cannot(results)):
        if error:
            error.results = results  # type: ignore[attr-defined]
            raise error


def results_despite(error: KdpipeError) -> Sequence[StageResult]:
    """The results of a run whose stages are all up to date although it ended in `error`.

    Raises `error` if a stage is not.
    """
    results: Sequence[StageResult] = getattr(error, "results", ())
    if not results or any(result.path is None for result in results):
        raise error
    return results


def _gate_missed(results: Sequence[StageResult], profile: Profile, strict: bool) -> KdpipeError | None:
    missed = [said for result in results for said in result.metrics.get("gates_missed") or ()]
    undecided = [said for result in results for said in result.metrics.get("gates_undecided") or ()]
    if not missed and not (strict and undecided):
        return None
    counted = [_counted(len(missed), "missed")] if missed else []
    if strict and undecided:
        counted.append(_counted(len(undecided), "undecided, which --strict counts as missed"))
    return GateMissed(
        "; ".join(counted),
        where="stage gate",
        why="\n".join(missed + (undecided if strict else [])),
        hint=f"kdpipe pick {profile.path} names the target that passes, if there is one",
    )


def _counted(count: int, what: str) -> str:
    return f"1 gate was {what}" if count == 1 else f"{count} gates were {what}"


def _machine_cannot(results: Sequence[StageResult]) -> KdpipeError | None:
    """A required target that could not be built fails the run, but only after all else is done."""
    for result in results:
        cannot = result.metrics.get("machine_cannot") or []
        if not cannot:
            continue
        names = ", ".join(entry["target"] for entry in cannot)
        hints = dict.fromkeys(entry["hint"] for entry in cannot if entry.get("hint"))
        return MachineCannot(
            f"This machine cannot build {names}, which the profile requires",
            where=f"stage {result.name}",
            why="; ".join(f"{entry['target']}: {entry['why']}" for entry in cannot),
            hint="; ".join(hints) or "run on a machine that can, or leave out `required`",
        )
    return None
