"""What judge depends on beside its inputs."""

from __future__ import annotations

from types import SimpleNamespace


def machine(settings: SimpleNamespace) -> dict[str, str]:
    return {"machine": settings.judge.machine}
