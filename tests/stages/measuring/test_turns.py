"""Workers that end early: the error is reported, and no worker is left behind."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline import machine
from pipeline.errors import StageError
from stages.measuring import launch, turns
from stages.measuring.launch import Subject
from stages.measuring.settings import MeasureSettings
from tests.errors import raises
from tests.stages.runtimes.networks import exported


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
    with raises(StageError, what="cannot load a built target"):
        turns.run(damaged, damaged, MeasureSettings(), batch=1, threads=1)
    processes = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(damaged.work) not in processes, "no worker is left"


def test_a_file_that_cannot_be_loaded_ends_a_measurement_with_its_fault(damaged: Subject) -> None:
    with raises(StageError, what="cannot load a built target") as caught:
        launch.run(damaged, MeasureSettings(), "latency", batch=1, threads=1)
    assert caught.value.hint


def test_a_worker_that_dies_says_how(damaged: Subject) -> None:
    (damaged.folder / "images.npy").unlink()
    with raises(StageError, what="ended without a result") as caught:
        launch.run(damaged, MeasureSettings(), "latency", batch=1, threads=1)
    assert "images.npy" in caught.value.why


@pytest.fixture
def good(tmp_path: Path) -> Subject:
    """A small network that runs."""
    shutil.copyfile(exported("cnn"), tmp_path / "model.onnx")
    np.save(tmp_path / "images.npy", np.zeros((2, 24, 24, 3), np.uint8))
    preprocessing = {"image_size": 24, "channels": 3, "mean": [0.45] * 3, "std": [0.25] * 3}
    return Subject(
        target={"model": "student", "target": "t-fp32", "runtime": "onnxruntime", "precision": "fp32"},
        card={"preprocessing": preprocessing, "input": "uint8_nhwc"},
        folder=tmp_path,
        images=tmp_path / "images.npy",
        work=tmp_path / "work",
    )


@pytest.fixture
def busy_cores() -> Iterator[None]:
    """Every core that a measurement may be bound to has another process at work."""
    spin = "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True: pass"
    others = [
        subprocess.Popen([sys.executable, "-c", spin, str(core)]) for core in sorted(machine.allowed_cores())
    ]
    yield
    for worker in others:
        worker.kill()
        worker.wait()


def test_turns_on_busy_cores_are_told_to_be_contended(good: Subject, busy_cores: None) -> None:
    settings = MeasureSettings(warmup_s=0.05, warmup_max_s=0.5, compare_s=2.0, compare_rounds=4)
    taken = turns.run(good, good, settings, batch=1, threads=1)
    assert [[len(side) for side in launch] for launch in taken.launches] == [[4, 4], [4, 4]]
    assert "contended" in taken.health["flags"]
    signs = " ".join(taken.health["contended_by"])
    assert "other processes took" in signs or "times CPU time" in signs or "switches" in signs
    assert taken.health["others_share"] > 0.1


def test_service_under_load_on_busy_cores_is_told_to_be_contended(good: Subject, busy_cores: None) -> None:
    settings = MeasureSettings(warmup_s=0.05, warmup_max_s=0.5, arrival_rates=[100.0], arrivals_s=1.5)
    entry, _ = launch.run(good, settings, "open_loop", batch=1, threads=1, rate_per_s=100.0)
    assert "contended" in entry["flags"]
    assert entry["health"]["contended_by"]
    assert entry["health"]["others_share"] > 0.1
    assert "flags" not in entry["health"]
