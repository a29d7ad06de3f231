"""The program for devices: light modules only, of the same code that the line runs."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import numpy as np

from pipeline.stage import Silent
from stages.devices.program import ROOT, imported_names, modules
from stages.devices.there import sessions
from stages.runtimes.images import natural_images
from stages.runtimes.onnx_runtime.cpu import RUNTIME
from stages.runtimes.settings import BuildSettings
from tests.stages.runtimes.networks import source_of

ON_DEVICES = {"numpy", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx"}
"""What the program may import besides the standard library and itself."""

SHARED = (
    "stages/onnx_files/session_options.py",
    "stages/runtimes/images.py",
    "stages/runtimes/onnx_runtime/session.py",
    "stages/runtimes/openvino/session.py",
    "stages/runtimes/tensorrt/build.py",
    "stages/runtimes/tensorrt/loaded_engine.py",
)
"""How a session is opened and an image fed: written once, for the line and for devices."""


def test_the_program_imports_nothing_heavy() -> None:
    ours = {"pipeline", "stages"}
    others = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules()
        for name in {name.partition(".")[0] for name in imported_names(path)}
        if name not in {*sys.stdlib_module_names, *ours, *ON_DEVICES}
    }
    assert others == set()


def test_python_3_10_reads_every_module() -> None:
    for path in modules():
        ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 10))


def test_the_program_carries_the_sessions_of_the_line() -> None:
    assert set(SHARED) <= {path.relative_to(ROOT).as_posix() for path in modules()}
    for name in ("SessionOptions", "compile_model", "deserialize_cuda_engine"):
        repeated = [path.name for path in modules() if "there" in path.parts and name in path.read_text()]
        assert repeated == [], f"{name}: the sessions are in stages/runtimes"


def test_a_device_computes_what_the_line_computes(tmp_path: Path) -> None:
    source = source_of("cnn")
    RUNTIME.build(source, tmp_path, BuildSettings(), Silent(), tmp_path)
    images = natural_images(source.image_shape, 5)
    request = {
        **{"runtime": "onnxruntime", "precision": "fp32", "onnx": None, "input": source.input},
        **{"image_shape": source.image_shape, "mean": source.mean, "std": source.std},
    }
    here, there = RUNTIME.load(tmp_path, source, 1), sessions.load(request, tmp_path, 1)
    np.testing.assert_array_equal(there.logits(images), here.logits(images))
    assert there.facts.items() > here.facts.items()
