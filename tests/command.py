"""Drives the command line as a user does: a process, its streams, its exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PROFILES = ROOT / "profiles"

STARTER: dict[str, Any] = {
    "data": {"name": "digits", "image_size": 16},
    "teacher": {"model": "test_resnet"},
    "student": {"model": "test_efficientnet"},
    "train": {"epochs": 1},
    "distill": {"epochs": 1},
}
"""The smallest profile that makes sense."""


def environment(**more: str) -> dict[str, str]:
    """The caller's environment, plain: no colour, no store of the user's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KDPIPE_")}
    return {**kept, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "OMP_NUM_THREADS": "2", **more}


def kdpipe(
    *arguments: str | Path, timeout_s: float = 500, python: tuple[str, ...] = (), cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *python, "-m", "pipeline", *map(str, arguments)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
        env=environment(),
        cwd=cwd,
    )


def document(finished: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The one JSON document on standard output."""
    found: dict[str, Any] = json.loads(finished.stdout)
    return found


def statuses(finished: subprocess.CompletedProcess[str]) -> dict[str, str]:
    return {stage["name"]: stage["status"] for stage in document(finished)["stages"]}


def write_profile(path: Path, profile: dict[str, Any]) -> Path:
    """JSON is YAML."""
    path.write_text(json.dumps(profile, indent=2), encoding="utf-8")
    return path
