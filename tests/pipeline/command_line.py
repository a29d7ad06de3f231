"""Calls the command line as a user does: a process, its streams, its exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
REAL = ("-m", "pipeline")
SMALL = ("-m", "tests.pipeline.smallhouse")
PROFILE = "profile.yaml"
PROFILE_TEXT = """\
name: small
data: {name: digits}
teacher: {model: resnet18}
student: {model: mobilenetv3_small_050}
"""


def environment(**more: str) -> dict[str, str]:
    ours = ("KDPIPE_", "NO_COLOR", "FORCE_COLOR", "SMALL_", "PYTHONIOENCODING", "PYTHONUNBUFFERED")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", **more}


def call(
    home: Path, *words: str, program: Sequence[str] = REAL, **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *program, *words],
        cwd=home,
        env=environment(**variables),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )


def document(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["schema_version"] == 1
    return found
