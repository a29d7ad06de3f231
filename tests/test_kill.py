"""kill -9 in the middle of any stage, then the same command again."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.command import document, environment, kdpipe, statuses, write_profile
from tests.stages.line import TINY

LINE = "train distill evaluate export quantize build measure gate package report"
STAGES = LINE.split()


def profile(folder: Path) -> Path:
    small: dict[str, Any] = {**TINY, "targets": ["onnxruntime-fp32", "onnxruntime-int8"]}
    for section in ("train", "distill"):
        small[section] = {**small[section], "epochs": 3, "fraction": 0.5}
    return write_profile(folder / "tiny.yaml", small)


def kill_in(stage: str, file: Path, store: Path, delay_s: float) -> bool:
    """Starts a run and kills its whole process group `delay_s` after `stage` began; False if it was
    over before."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "run", str(file), "--store", str(store), "-v"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if re.match(rf"\s*{stage}\s+started", line):
                time.sleep(delay_s)
                os.killpg(process.pid, signal.SIGKILL)
                break
        return process.wait(timeout=60) == -signal.SIGKILL
    finally:
        process.stderr.close()


def kill_through(stages: list[str], folder: Path) -> None:
    file, store = profile(folder), folder / "store"
    for number, stage in enumerate(stages):
        killed = kill_in(stage, file, store, delay_s=0.15 * (number % 3))
        planned = kdpipe("plan", file, "--store", store, "--json")
        found = statuses(planned)
        before = STAGES[: STAGES.index(stage)]
        assert [found[name] for name in before] == ["hit"] * len(before), f"finished stages stay, {stage}"
        if killed and stage not in ("gate", "package", "report"):  # these may be over within the delay
            assert found[stage] == "stale", f"nothing half-made counts, {stage}"
    finished = kdpipe("run", file, "--store", store, "--json")
    assert finished.returncode == 0, finished.stderr
    assert set(statuses(finished).values()) <= {"hit", "ran"}
    assert not list((store / "tmp").glob("*")), "what was left half-made is swept up"

    undisturbed = kdpipe("run", file, "--store", folder / "other", "--until", "quantize", "--json")
    digests = {stage["name"]: stage["digest"] for stage in document(finished)["stages"]}
    for other in document(undisturbed)["stages"]:
        if other["name"] in ("train", "distill", "evaluate", "export", "quantize"):
            assert digests[other["name"]] == other["digest"], "the same bytes as without a kill"


def test_killed_while_training_and_measuring(tmp_path: Path) -> None:
    kill_through(["train", "distill", "measure"], tmp_path)


@pytest.mark.slow
def test_killed_in_every_stage(tmp_path: Path) -> None:
    kill_through(STAGES, tmp_path)
