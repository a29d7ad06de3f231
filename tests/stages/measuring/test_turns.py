"""Workers that cannot go on: their fault is told, and none of them is left behind."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import StageError
from stages.measuring import launch, turns
from stages.measuring.launch import Subject
from stages.measuring.settings import MeasureSettings


@pytest.fixture
def damaged(tmp_path: Path) -> Subject:
    """A target whose file is no ONNX."""
    (tmp_path / "model.onnx").write_bytes(b"no network")
    np.save(tmp_path / "images.npy", np.zeros((2, 8, 8, 3), np.uint8))
    preprocessing = {"image_size": 8, "channels": 3, "mean": [0.5] * 3, "std": [0.5] * 3}
    return Subject(
        target={"model": "student", "target": "t-fp32", "runtime": "onnxruntime", "precision": "fp32"},
        card={"preprocessing": preprocessing, "input": "uint8_nhwc"},
        folder=tmp_path,
        images=tmp_path / "images.npy",
        work=tmp_path / "work",
    )


def test_a_file_that_cannot_be_loaded_ends_the_turns_with_its_fault(damaged: Subject) -> None:
    with pytest.raises(StageError, match="cannot load a built target"):
        turns.run(damaged, damaged, MeasureSettings(), batch=1, threads=1)
    told = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(damaged.work) not in told, "no worker is left"


def test_a_file_that_cannot_be_loaded_ends_a_measurement_with_its_fault(damaged: Subject) -> None:
    with pytest.raises(StageError, match="cannot load a built target") as caught:
        launch.run(damaged, MeasureSettings(), "latency", planned_s=1.0, batch=1, threads=1)
    assert caught.value.mend


def test_a_worker_that_dies_says_how(damaged: Subject) -> None:
    (damaged.folder / "images.npy").unlink()
    with pytest.raises(StageError, match="ended without a result") as caught:
        launch.run(damaged, MeasureSettings(), "latency", planned_s=1.0, batch=1, threads=1)
    assert "images.npy" in caught.value.why
