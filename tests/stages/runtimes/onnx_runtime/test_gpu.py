"""ONNX Runtime's GPU providers, as far as they can be tested without a GPU: the refusals."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest

from pipeline.errors import StageError, UsageError
from pipeline.stage import Context, Silent
from stages import build
from stages.onnx_files.session_options import session_options
from stages.runtimes import registry
from stages.runtimes.identity import build_machine
from stages.runtimes.onnx_runtime import gpu as onnx_runtime_gpu
from stages.runtimes.onnx_runtime import gpu_trial as onnx_runtime_trial
from stages.runtimes.onnx_runtime.gpu import CUDA, TENSORRT
from stages.runtimes.onnx_runtime.gpu_session import assigned_nodes
from stages.runtimes.onnx_runtime.session import open_on_provider
from stages.runtimes.onnx_runtime.tensorrt import profile_options
from stages.runtimes.settings import BuildSettings
from tests.errors import raises
from tests.stages.runtimes.networks import artefacts, source_of
from tests.stages.runtimes.plugins import install_nothing_but

pytestmark = pytest.mark.long

CPU_PACKAGE = CUDA not in onnxruntime.get_available_providers()
only_cpu_package = pytest.mark.skipif(not CPU_PACKAGE, reason="onnxruntime-gpu is installed")

LOG = (
    "\x1b[1;31m2026-11-21 14:30:51.4 [E:onnxruntime:Default, provider_bridge_ort.cc:2458 operator()] "
    "/onnxruntime_src/onnxruntime/core/session/provider_bridge_ort.cc:2043 onnxruntime::Provider& "
    "onnxruntime::ProviderLibrary::Get() [ONNXRuntimeError] : 1 : FAIL : Failed to load library "
    "/site/onnxruntime/capi/libonnxruntime_providers_cuda.so with error: libcublasLt.so.13: cannot open "
    "shared object file: No such file or directory\n\x1b[m\n"
    "\x1b[0;93m2026-11-21 14:30:51.4 [W:onnxruntime:Default, onnxruntime_pybind_state.cc:1295 "
    "CreateExecutionProviderFactoryInstance] Failed to create CUDAExecutionProvider.\x1b[m\n"
)
"""What onnxruntime-gpu 1.31.1 wrote on a machine without CUDA, shortened at the end."""


@only_cpu_package
@pytest.mark.parametrize("provider", [CUDA, TENSORRT])
def test_a_provider_that_the_package_does_not_have_is_an_error(provider: str) -> None:
    file = source_of("cnn").onnx
    # This is what has to be caught: the package itself goes on, on the CPU.
    quietly = onnxruntime.InferenceSession(str(file), session_options(threads=1), providers=[provider])
    assert quietly.get_providers() == ["CPUExecutionProvider"]
    with raises(StageError, what="another provider") as caught:
        open_on_provider(
            file, session_options(threads=1), [(provider, {})], hint="install it", reason=lambda: "so"
        )
    assert caught.value.why == f"found CPUExecutionProvider, expected {provider}: so"
    assert caught.value.hint == "install it"


@only_cpu_package
@pytest.mark.process
@pytest.mark.parametrize("runtime", ["onnxruntime_cuda", "onnxruntime_tensorrt"])
def test_the_build_stage_says_what_is_missing_and_what_to_install(runtime: str, tmp_path: Path) -> None:
    (tmp_path / "output").mkdir()
    settings = SimpleNamespace(
        targets=[SimpleNamespace(name=f"{runtime}-fp16", required=False)], build=BuildSettings(batch_max=8)
    )
    context = Context(
        settings=settings,
        inputs=artefacts(tmp_path / "inputs", student="cnn"),
        output=tmp_path / "output",
        work=tmp_path / "work",
        progress=Silent(),
    )
    metrics = build.run(context)
    assert metrics["not_built"] == 1
    rows = json.loads((tmp_path / "output" / "build.json").read_text())["targets"]
    row: dict[str, Any] = next(row for row in rows if row["runtime"] == runtime)
    assert row["built"] is False
    assert "ExecutionProvider: it is the package for CPUs" in row["why_not"]
    assert "pip install 'onnxruntime-gpu[cuda,cudnn]" in row["hint"]


def test_the_reason_is_taken_from_the_log() -> None:
    expected = "libcublasLt.so.13: cannot open shared object file: No such file or directory"
    assert onnx_runtime_trial.reason_in_log(LOG) == expected
    assert onnx_runtime_trial.reason_in_log("[E:onnxruntime:, x.cc:1 f] no CUDA-capable device\n") == (
        "no CUDA-capable device"
    )
    assert onnx_runtime_trial.reason_in_log("nothing of interest") == ""


def test_a_heavy_layer_on_another_provider_is_an_error() -> None:
    options = session_options(threads=1)
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    cpu = "CPUExecutionProvider"
    session = onnxruntime.InferenceSession(str(source_of("cnn").onnx), options, providers=[cpu])
    counts = assigned_nodes(session, cpu, Path("cnn"))
    assert list(counts) == [cpu]
    assert counts[cpu] >= 5
    with raises(StageError, what="does not take all layers") as caught:
        assigned_nodes(session, CUDA, Path("cnn"))
    assert f"on {cpu}" in caught.value.why
    assert "Conv" in caught.value.why


def test_precisions_that_make_no_sense_say_why() -> None:
    assert registry.check_target("onnxruntime_cuda-fp16").name == "onnxruntime_cuda"
    assert registry.check_target("onnxruntime_tensorrt-int8").recipe == "signed"
    with pytest.raises(UsageError) as caught:
        registry.check_target("onnxruntime_cuda-int8")
    assert "no INT8 convolution" in caught.value.why


@pytest.mark.parametrize("target", ["onnxruntime_cuda-fp16", "onnxruntime_tensorrt-int8"])
def test_gpu_driver_and_package_are_part_of_the_key(target: str) -> None:
    facts = build_machine(SimpleNamespace(targets=[target]))
    assert facts["gpu"]
    assert facts["driver"]
    assert facts["onnxruntime-gpu"]  # a version, or "not installed"
    assert ("tensorrt" in facts) is (target == "onnxruntime_tensorrt-int8")


def test_one_profile_covers_the_batches_of_the_settings() -> None:
    settings = BuildSettings(batch_min=1, batch_opt=4, batch_max=8, workspace_mb=256)
    options = profile_options("input", source_of("cnn"), settings)
    shapes = [options[f"trt_profile_{end}_shapes"] for end in ("min", "opt", "max")]
    assert shapes == ["input:1x24x24x3", "input:4x24x24x3", "input:8x24x24x3"]
    assert options["trt_max_workspace_size"] == str(256 * 2**20)
    plain = profile_options("input", source_of("cnn", preprocessing=False), settings)
    assert plain["trt_profile_max_shapes"] == "input:8x3x24x24"
    assert not any("fp16" in key or "int8" in key for key in options)  # the graph alone types it


def _built(folder: Path, *, engine: bytes, capability: str = "9.0") -> None:
    (folder / "one.engine").write_bytes(engine)
    sidecar = {
        "onnxruntime": "1.31.1",
        "gpu": "NVIDIA H100",
        "compute_capability": capability,
        "options": {},
        "engines": {"one.engine": hashlib.sha256(b"engine").hexdigest()},
    }
    (folder / "provider.json").write_text(json.dumps(sidecar), encoding="utf-8")


def test_only_the_engines_that_were_built_for_this_machine_are_loaded(tmp_path: Path) -> None:
    _built(tmp_path, engine=b"engine")
    assert onnx_runtime_gpu.read_sidecar(tmp_path, "1.31.1", "9.0")["options"] == {}
    with raises(StageError, what="another GPU or ONNX Runtime") as caught:
        onnx_runtime_gpu.read_sidecar(tmp_path, "1.31.1", "8.6")
    assert "NVIDIA H100" in caught.value.why
    with raises(StageError, what="another GPU or ONNX Runtime"):
        onnx_runtime_gpu.read_sidecar(tmp_path, "1.32.0", "9.0")
    _built(tmp_path, engine=b"another engine")
    with raises(StageError, what="not the ones that were built"):
        onnx_runtime_gpu.read_sidecar(tmp_path, "1.31.1", "9.0")
    (tmp_path / "provider.json").unlink()
    with raises(StageError, what="cannot be read"):
        onnx_runtime_gpu.read_sidecar(tmp_path, "1.31.1", "9.0")


PACKAGE = """
__version__ = "1.99.0"


class ExecutionMode:
    ORT_SEQUENTIAL = 0


class GraphOptimizationLevel:
    ORT_ENABLE_ALL = 99


class SessionOptions:
    def add_session_config_entry(self, key, value):
        pass


class InferenceSession:
    def __init__(self, file, *options, **more):
        pass

    def get_providers(self):
        return ["TensorrtExecutionProvider"]

    def run(self, names, feed):
        return [feed["x"]]


def get_available_providers():
    return ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


def preload_dlls():
    pass
"""
"""Stands in for onnxruntime-gpu, which needs a GPU: as much of it as is asked here."""


@pytest.mark.parametrize(("provider", "also"), [(CUDA, set()), (TENSORRT, {"tensorrt"})])
def test_the_versions_to_install_name_tensorrt_where_its_libraries_are_needed(
    provider: str, also: set[str], tmp_path: Path
) -> None:
    (tmp_path / "onnxruntime.py").write_text(PACKAGE, encoding="utf-8")
    install_nothing_but(tmp_path, "tensorrt", "11.99.0")
    code = (
        "from stages.runtimes.onnx_runtime import gpu\n"
        f"print(sorted(gpu.ability({provider!r}).versions.items()))"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(build.__file__).parents[1]}"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    expected = {"onnxruntime-gpu": "1.99.0", **dict.fromkeys(also, "11.99.0")}
    assert done.stdout.strip() == str(sorted(expected.items()))
