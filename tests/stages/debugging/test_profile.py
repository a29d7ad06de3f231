"""`kdpipe debug PROFILE` as a user calls it: sound, looked at too closely, and with a runtime that errs."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.command import ROOT, STARTER, document, environment, write_profile
from tests.stages.runtimes.plugins import install_plugin, numpy_runtime

SOUND = ["onnxruntime-fp32", "onnxruntime-int8"]


@dataclass(frozen=True)
class Place:
    """A store that both profiles share, and a folder of plug-ins."""

    folder: Path

    def kdpipe(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pipeline", *map(str, words), "--store", str(self.folder / "store")],
            capture_output=True,
            text=True,
            check=False,
            env=environment(PYTHONPATH=f"{ROOT}:{self.folder / 'plugins'}"),
        )

    def profile(self, *targets: str) -> Path:
        settings = {
            "compute": {"device": "cpu", "precision": "fp32", "threads": 1},
            "quantize": {"images": 16},
        }
        return write_profile(self.folder / "tiny.yaml", {**STARTER, **settings, "targets": list(targets)})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("debug")
    (folder / "plugins").mkdir()
    install_plugin(folder / "plugins", "crooked", numpy_runtime("crooked", scale=1.5))
    return Place(folder)


def test_a_sound_profile_is_healthy_and_leaves_no_model(place: Place) -> None:
    profile = place.profile(*SOUND)
    told = place.kdpipe("debug", profile, "--images", "8")
    assert told.returncode == 0, told.stderr
    assert "healthy: no layer diverges for good" in told.stdout
    for step in ("PyTorch -> student.onnx: healthy", "student.onnx -> onnxruntime-fp32: healthy"):
        assert step in told.stdout
    assert not (place.folder / "store" / "debug").exists()


def test_what_is_looked_at_too_closely_diverges_at_a_layer_with_its_minimal_model(place: Place) -> None:
    """INT8 rounds: held against a hundredth of what rounding gives, its first layer is at fault."""
    profile = place.profile(*SOUND)
    words = ("debug", profile, "--target", "onnxruntime-int8", "--tolerance", "0.0001", "--images", "8")
    told = place.kdpipe(*words, "--json")
    assert told.returncode == 3, told.stderr
    found = document(told)
    assert not found["healthy"]
    (step,) = [one for one in found["steps"] if one["status"] == "diverges" and one["first"]][:1]
    assert "int8" in step["step"]
    case = onnx.load(Path(step["output"]) / "suspect.onnx")
    assert step["first"]["node"] in [node.name for node in case.graph.node]
    expected, said = (np.load(Path(step["output"]) / f"{name}.npy") for name in ("expected", "found"))
    assert np.abs(expected - said).max() > 0


def test_a_runtime_that_computes_something_else_is_named_although_its_build_was_refused(place: Place) -> None:
    profile = place.profile("onnxruntime-fp32", "crooked-fp32")
    built = place.kdpipe("build", profile, "--json")
    assert built.returncode == 0, built.stderr
    told = place.kdpipe("debug", profile, "--images", "8", "--json")
    assert told.returncode == 3, told.stderr
    steps = {step["step"]: step for step in document(told)["steps"]}
    assert steps["PyTorch -> student.onnx"]["healthy"]
    assert steps["student.onnx -> onnxruntime-fp32"]["healthy"]
    crooked = steps["student.onnx -> crooked-fp32"]
    assert crooked["status"] == "diverges"
    assert crooked["shipped_relative"] > 0.1
    assert "made again without their proofs" in told.stderr
