"""What judge depends on beside its inputs, and a condition on what refine reads."""

from __future__ import annotations

from types import SimpleNamespace


def machine(settings: SimpleNamespace) -> dict[str, str]:
    return {"machine": settings.judge.machine}


def many_rounds(settings: SimpleNamespace) -> bool:
    return bool(settings.refine.rounds >= 9)
