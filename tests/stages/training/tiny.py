"""Profiles small enough to train in a second: digits at 16 pixels, timm's test networks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pipeline.stage import Context, Progress, Silent
from stages.settings import profile_model

SECTIONS = {
    "train": ("seed", "compute", "data", "teacher", "train"),
    "distill": ("seed", "compute", "data", "student", "distill"),
    "evaluate": ("compute", "data", "evaluate"),
}
"""Like `reads` in stages/__init__.py: a stage gets no other section."""

PROFILE: dict[str, Any] = {
    "compute": {"device": "cpu", "precision": "fp32", "threads": 1},
    "data": {"name": "digits", "image_size": 16},
    "teacher": {"model": "test_resnet"},
    "student": {"model": "test_byobnet"},
    "train": {"epochs": 3, "batch_size": 32, "fraction": 0.12},
    "distill": {"epochs": 2, "batch_size": 32, "fraction": 0.12},
}


def settings(stage: str, **changes: Mapping[str, Any] | int) -> SimpleNamespace:
    """What the engine hands the stage; `changes` are merged into the sections of PROFILE."""
    merged = dict(PROFILE)
    for name, change in changes.items():
        merged[name] = {**PROFILE.get(name, {}), **change} if isinstance(change, Mapping) else change
    profile = profile_model()(**merged)
    return SimpleNamespace(**{name: getattr(profile, name) for name in SECTIONS[stage]})


def context(
    folder: Path,
    settings: SimpleNamespace,
    *,
    inputs: Mapping[str, Path] | None = None,
    progress: Progress | None = None,
) -> Context:
    """A stage's context with the folders `output` (empty) and `work` under `folder`."""
    output, work = folder / "output", folder / "work"
    output.mkdir(parents=True)
    work.mkdir(exist_ok=True)
    return Context(
        settings=settings, inputs=inputs or {}, output=output, work=work, progress=progress or Silent()
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below the folder by its relative name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class Recorder:
    """Records the progress; after `stop_after` units it raises, like a run that is killed."""

    def __init__(self, stop_after: float | None = None) -> None:
        self.updates: list[tuple[float, float, dict[str, float | str]]] = []
        self.notes: list[str] = []
        self.stop_after = stop_after

    def update(self, done: float, total: float, unit: str = "", **figures: float | str) -> None:
        self.updates.append((done, total, figures))
        if self.stop_after is not None and done > self.stop_after:
            raise Stopped

    def note(self, text: str) -> None:
        self.notes.append(text)


class Stopped(BaseException):
    """Stands for an interrupt: no `except Exception` may catch it."""
