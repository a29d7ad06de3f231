"""A finished line, and devices for it."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from tests.command import document, kdpipe, write_profile
from tests.ssh_server import Server

PACKED = ["onnxruntime-fp32", "onnxruntime-int8"]

TINY: dict[str, Any] = {
    "compute": {"device": "cpu", "precision": "fp32", "threads": 1},
    "data": {"name": "digits", "image_size": 16},
    "teacher": {"model": "test_resnet"},
    "student": {"model": "test_efficientnet"},
    "train": {"epochs": 1, "batch_size": 64, "learning_rate": 0.005},
    "distill": {"epochs": 2, "batch_size": 64, "learning_rate": 0.005, "methods": []},
    "quantize": {"images": 16},
    "measure": {
        "warmup_s": 0.01,
        "duration_s": 0.05,
        "max_duration_s": 0.1,
        "min_samples": 20,
        "compare_s": 0,
    },
    "targets": ["onnxruntime-fp32", "onnxruntime-int8", "tensorrt_rtx-fp16"],
    "package": {"targets": PACKED},
}


@dataclass
class DeviceLab:
    """A store with a finished line, an sshd, and a Python for the devices."""

    folder: Path
    server: Server
    python: str
    counter: list[int] = field(default_factory=lambda: [0])

    settings: ClassVar[dict[str, Any]] = TINY

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def home(self) -> Path:
        """A folder for a device, not there yet."""
        self.counter[0] += 1
        return self.folder / f"device {self.counter[0]}"  # a blank: what is not quoted breaks

    def profile(self, devices: dict[str, Any], **more: Any) -> Path:
        return write_profile(self.folder / "tiny.yaml", {**TINY, **more, "devices": devices})

    def device(self, home: Path, **more: Any) -> dict[str, Any]:
        return self.server.device(python=self.python, folder=str(home), **more)

    def run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return kdpipe(*words, "--store", self.store)

    def artefact(self, profile: Path, stage: str) -> Path:
        """Return the folder of a stage of the finished line."""
        planned = document(self.run("plan", profile, "--json"))["stages"]
        return Path(next(entry["path"] for entry in planned if entry["name"] == stage))
