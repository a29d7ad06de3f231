"""On which machine an engine is loaded, and what trtexec is told where the package is missing. No GPU."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import StageError
from stages.devices.there import trtexec, trtexec_program
from stages.runtimes.settings import BuildSettings
from stages.runtimes.tensorrt import sidecar as tensorrt_sidecar
from stages.runtimes.tensorrt.sidecar import Machine
from tests.devices.trtexec import stand_in
from tests.errors import raises

# The sidecar


MACHINE = Machine("tensorrt", "11.4.0", "8.7", "linux", "aarch64")


def _with_sidecar(folder: Path, **changes: Any) -> dict[str, Any]:
    (folder / "model.engine").write_bytes(b"engine")
    sidecar = {
        "sha256": hashlib.sha256(b"engine").hexdigest(),
        "package": "tensorrt",
        "version": "11.4.0",
        "compute_capability": "8.7",
        "gpu": "Orin",
        "system": "linux",
        "architecture": "aarch64",
        **changes,
    }
    (folder / "engine.json").write_text(json.dumps(sidecar), encoding="utf-8")
    return sidecar


def test_an_engine_that_does_not_fit_is_refused_before_it_is_touched(tmp_path: Path) -> None:
    sidecar = _with_sidecar(tmp_path)
    read = tensorrt_sidecar.read
    assert read(tmp_path, MACHINE) == sidecar
    for changes, match in (
        ({"version": "11.4.1"}, "another version"),
        ({"version": "10.16.1"}, "another version"),
        ({"package": "tensorrt_rtx"}, "another version"),
        ({"capability": "9.0"}, "another GPU"),
        ({"system": "windows"}, "another system"),
        ({"architecture": "x86_64"}, "another system"),
    ):
        with raises(StageError, what=match):
            read(tmp_path, replace(MACHINE, **changes))
    (tmp_path / "model.engine").write_bytes(b"tampered")
    with raises(StageError, what="not the one that was built"):
        read(tmp_path, MACHINE)
    (tmp_path / "engine.json").unlink()
    with raises(StageError, what="cannot be read"):
        read(tmp_path, MACHINE)


@pytest.mark.parametrize(
    ("built", "version", "fits"),
    [("11.1.0", "11.4.0", True), ("11.4.1", "11.4.0", False), ("10.12.0", "11.4.0", False)],
)
def test_a_version_compatible_engine_fits_later_minor_versions(
    built: str, version: str, fits: bool, tmp_path: Path
) -> None:
    _with_sidecar(tmp_path, version=built, version_compatible=True)
    machine = replace(MACHINE, version=version)
    if fits:
        assert tensorrt_sidecar.read(tmp_path, machine)["version"] == built
    else:
        with raises(StageError, what="another version") as caught:
            tensorrt_sidecar.read(tmp_path, machine)
        assert "version-compatible" in caught.value.why


@pytest.mark.parametrize(
    ("level", "capability", "fits"),
    [
        ("ampere_plus", "9.0", True),
        ("ampere_plus", "7.5", False),
        ("ampere_plus", "12.0", True),
        ("same_compute_capability", "8.9", False),
        ("same_compute_capability", "8.7", True),
        ("none", "8.9", False),
    ],
)
def test_a_hardware_compatible_engine_fits_what_it_says(
    level: str, capability: str, fits: bool, tmp_path: Path
) -> None:
    _with_sidecar(tmp_path, hardware_compatible=level)
    machine = replace(MACHINE, capability=capability)
    if fits:
        tensorrt_sidecar.read(tmp_path, machine)
    else:
        with raises(StageError, what="another GPU"):
            tensorrt_sidecar.read(tmp_path, machine)


# By the command line, on a device without the package


def test_trtexec_is_told_the_options_that_it_can_follow(tmp_path: Path) -> None:
    program = trtexec_program.inspect(str(stand_in(tmp_path / "bin", 110100) / "trtexec"))
    (tmp_path / "student.onnx").write_bytes(b"network")
    request = {
        "onnx": str(tmp_path / "student.onnx"),
        "target": "tensorrt-fp32",
        "timings": str(tmp_path / "timings"),
        "input": "uint8_nhwc",
        "image_shape": [24, 24, 3],
        "build": BuildSettings(refit=True, hardware_compatible="ampere_plus", batch_opt=2).model_dump(),
    }
    trtexec.build(program, request, tmp_path)
    commands = (tmp_path / "bin" / "commands.txt").read_text(encoding="utf-8")
    assert "--refit" in commands
    assert "--noTF32" in commands
    assert "--hardwareCompatibilityLevel=ampere+" in commands
    assert "--optShapes=input:2x24x24x3" in commands
    allowed = BuildSettings(version_compatible=True, trust_engine_host_code=True, batch_opt=2)
    with raises(StageError, what="no version-compatible engine"):
        trtexec.build(program, {**request, "build": allowed.model_dump()}, tmp_path)
