from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.machine import computes_bf16, gpu_facts, installed_versions
from stages.runtimes.identity import build_machine
from tests.stages.runtimes.plugins import install_nothing_but, install_plugin, numpy_runtime


def _targets(*names: str) -> SimpleNamespace:
    return SimpleNamespace(targets=[SimpleNamespace(name=name, required=False) for name in names])


def test_names_the_versions_of_what_the_targets_need() -> None:
    facts = build_machine(_targets("onnxruntime-int8", "openvino-fp32"))
    assert facts["onnxruntime"] == version("onnxruntime")
    assert facts["openvino"] == version("openvino")
    assert facts["architecture"] == platform.machine()
    assert not {"gpu", "driver", "tensorrt", "tensorrt-rtx"} & set(facts)


def test_the_baseline_counts_whatever_the_targets_are() -> None:
    assert build_machine(_targets("openvino-fp32"))["onnxruntime"] == version("onnxruntime")


def test_a_tensorrt_target_depends_on_the_gpu() -> None:
    facts = build_machine(_targets("tensorrt_rtx-fp16"))
    assert facts["tensorrt-rtx"] == version("tensorrt-rtx")
    assert facts["gpu"]
    assert facts["driver"]


def test_a_package_that_is_not_there_is_a_fact_too() -> None:
    assert installed_versions(["no-such-package"]) == {}
    facts = build_machine(SimpleNamespace(targets=[{"name": "tensorrt-fp16", "required": True}]))
    assert facts["tensorrt"]  # a version, or "not installed"


def test_spelling_of_a_distribution_does_not_matter() -> None:
    assert installed_versions(["Tensorrt_RTX"]) == {"Tensorrt_RTX": version("tensorrt-rtx")}


def test_a_third_party_runtime_says_itself_what_counts(plugin_folder: Path) -> None:
    install_plugin(plugin_folder, "reference", numpy_runtime("reference"))
    assert build_machine(_targets("reference-fp32"))["reference-plugin"] == "1.2"


def test_it_is_quick_and_light() -> None:
    settings = _targets("onnxruntime-fp32", "openvino-int8", "tensorrt-fp16")
    build_machine(settings)
    fastest = 1.0
    for _ in range(5):
        before = time.perf_counter()
        build_machine(settings)
        fastest = min(fastest, time.perf_counter() - before)
    assert fastest < 0.015
    code = (
        "import sys; from types import SimpleNamespace as N\n"
        "from stages.runtimes.identity import build_machine\n"
        "build_machine(N(targets=['tensorrt-fp16', 'openvino-int8']))\n"
        "print([n for n in ('pydantic', 'numpy', 'torch', 'importlib.metadata') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.skipif(Path("/proc/driver/nvidia/gpus").exists(), reason="the driver lists its GPUs itself")
def test_the_drivers_tool_is_asked_where_there_is_no_listing(tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\necho "NVIDIA Orin, 540.4"\necho "NVIDIA Orin, 540.4"\n', encoding="utf-8")
    tool.chmod(0o755)
    code = "from pipeline.machine import gpu_facts; print(gpu_facts())"
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str({"gpu": "NVIDIA Orin, NVIDIA Orin", "driver": "540.4"})


def test_gpu_facts_are_never_empty() -> None:
    assert all(gpu_facts().values())


def test_whether_the_processor_computes_bf16_counts_for_openvino_bf16_alone() -> None:
    done = "computed" if computes_bf16() else "not computed"
    assert build_machine(_targets("onnxruntime-fp32", "openvino-bf16"))["bf16"] == done
    assert "bf16" not in build_machine(_targets("openvino-int8", "tensorrt_rtx-bf16"))


def test_pytorch_counts_for_a_target_on_a_gpu(plugin_folder: Path) -> None:
    """Another PyTorch, as the remedies ask for, is another machine: it runs what is built."""
    assert "torch" not in build_machine(_targets("onnxruntime-fp32"))
    install_nothing_but(plugin_folder, "nvidia-cudnn-cu13", "9.99.0")
    for target in ("tensorrt-fp16", "onnxruntime_cuda-fp16"):
        facts = build_machine(_targets(target))
        assert facts["torch"] == version("torch")
        assert facts["nvidia-cudnn-cu13"] == "9.99.0"
