"""A third party's runtime whose pace is a file: where it is slow, and where it hangs.

    {"load_s": 0, "call_s": 0.001, "batch_s": 0, "hang": "load" | "call 20" | "batch 3" | ""}

It writes what it does into `events.txt` beside that file, a line each: the process, and `load`, `call` or
`batch`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from stages.measuring.launch import Subject

PACE = {"load_s": 0.0, "call_s": 0.001, "batch_s": 0.0, "hang": ""}

CODE = """
from tests.stages.measuring.slow_runtime import Slow
RUNTIME = Slow()
"""


def subject(folder: Path, monkeypatch: pytest.MonkeyPatch, *, images: int = 10, **pace: Any) -> Subject:
    """A target of this runtime, with so many test images; workers find it by its entry point."""
    package = folder / "package"
    about = package / "slow_runtime-1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: slow-runtime\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[kdpipe.runtimes]\nslow = slow_runtime_plugin:RUNTIME\n")
    (package / "slow_runtime_plugin.py").write_text(CODE)
    monkeypatch.setattr(sys, "path", [*sys.path, str(package)])
    (folder / "pace.json").write_text(json.dumps({**PACE, **pace}))
    np.save(folder / "images.npy", np.zeros((images, 8, 8, 3), np.uint8))
    preprocessing = {"image_size": 8, "channels": 3, "mean": [0.5] * 3, "std": [0.5] * 3}
    return Subject(
        target={"model": "student", "target": "slow-fp32", "runtime": "slow", "precision": "fp32"},
        card={"preprocessing": preprocessing, "input": "uint8_nhwc"},
        folder=folder,
        images=folder / "images.npy",
        work=folder / "work",
    )


def events(subject: Subject) -> list[tuple[int, str]]:
    """(process, what it did) in order."""
    lines = (subject.folder / "events.txt").read_text().splitlines()
    return [(int(pid), what) for pid, what in (line.split() for line in lines)]


class Session:
    def __init__(self, folder: Path) -> None:
        self.facts: dict[str, Any] = {"effective_precision": "fp32"}
        self._folder, self._pace = folder, json.loads((folder / "pace.json").read_text())
        self._done = {"load": 0, "call": 0, "batch": 0}
        self._do("load")

    def timed(self, images: np.ndarray) -> Callable[[], None]:
        return lambda: self._do("call")

    def logits(self, images: np.ndarray) -> np.ndarray:
        self._do("batch")
        return np.tile(np.arange(4, dtype=np.float32), (len(images), 1))

    def _do(self, what: str) -> None:
        with (self._folder / "events.txt").open("a") as file:
            file.write(f"{os.getpid()} {what}\n")
        self._done[what] += 1
        if self._pace["hang"] in (what, f"{what} {self._done[what]}"):
            time.sleep(3600)
        time.sleep(self._pace[f"{what}_s"])


class Slow:
    name, precisions, recipe = "slow", ("fp32",), "x86"
    not_offered: ClassVar[dict[str, str]] = {}
    distributions: tuple[str, ...] = ()

    def ability_to_build(self) -> None: ...

    def ability_to_run(self) -> None: ...

    def build(self) -> None: ...

    def load(self, folder: Path, source: Any, threads: int) -> Session:
        return Session(folder)
