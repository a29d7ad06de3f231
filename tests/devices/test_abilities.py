"""What a device can run, from the facts that its program reports."""

from __future__ import annotations

from typing import Any

import pytest

from stages.devices.abilities import key_facts, lasting_facts, software_rows, why_unable
from stages.devices.requests import is_built_there, measuring_request, source_of

FACTS: dict[str, Any] = {
    "machine": {"cpu": "A78", "architecture": "aarch64", "cores": 6, "memory_gib": 7.4, "gpu": "none"},
    "board": "a board",
    "python": {"version": "3.10.12", "executable": "/usr/bin/python3"},
    "numpy": {"version": "2.2.0"},
    "runtimes": {
        "onnxruntime": {"version": "1.27.0"},
        "openvino": {"error": "No module named 'openvino'"},
        "tensorrt": {"error": "No module named 'tensorrt'"},
        "tensorrt_rtx": {
            **{"version": "1.3", "builds": True, "runs": False},
            **{"builds_why_not": None, "runs_why_not": "this machine has no NVIDIA driver"},
        },
    },
    "trtexec": None,
    "trtexec_version": None,
    "gpu": {"error": "this machine has no NVIDIA driver"},
    "folder": {"path": "/home/user/kdpipe", "free_bytes": 1, "writable": True},
    "load_average": 0.5,
}

TRTEXEC = {"trtexec": "/usr/src/tensorrt/bin/trtexec", "trtexec_version": "10.3.0"}
GPU = {"gpu": {"name": "Orin", "compute_capability": "8.7", "driver": "CUDA 12.6"}}


def test_each_target_has_a_reason_or_none() -> None:
    reasons = why_unable(
        FACTS, ["onnxruntime-int8", "openvino-fp32", "tensorrt-fp16", "tensorrt_rtx-fp16", "ncnn-fp32"]
    )
    assert reasons == {
        "onnxruntime-int8": None,
        "openvino-fp32": "No module named 'openvino'",
        "tensorrt-fp16": "No module named 'tensorrt'",
        "tensorrt_rtx-fp16": "is built there, but not run: this machine has no NVIDIA driver",
        "ncnn-fp32": "kdpipe cannot run ncnn on devices",
    }


def test_trtexec_stands_in_for_the_package_where_there_is_a_gpu() -> None:
    assert why_unable({**FACTS, **TRTEXEC, **GPU}, ["tensorrt-fp16"]) == {"tensorrt-fp16": None}
    without = why_unable({**FACTS, **TRTEXEC}, ["tensorrt-fp16"])
    assert without == {"tensorrt-fp16": "this machine has no NVIDIA driver"}


def test_without_numpy_no_target_can_be_measured() -> None:
    facts = {**FACTS, "numpy": {"error": "No module named 'numpy'"}}
    assert why_unable(facts, ["onnxruntime-fp32"]) == {"onnxruntime-fp32": "No module named 'numpy'"}


def test_a_key_holds_versions_and_hardware_and_no_path() -> None:
    key = key_facts({**FACTS, **TRTEXEC})
    assert (key["cpu"], key["trtexec"], key["cuda"]) == ("A78", "10.3.0", FACTS["gpu"])
    assert "/" not in str(key)
    lasting = lasting_facts({**FACTS, **TRTEXEC})
    assert lasting["trtexec"] is True
    assert lasting["python"] == {"version": "3.10.12"}
    assert not {"folder", "load_average"} & set(lasting)


def test_the_table_has_a_row_for_each_runtime() -> None:
    rows = dict(software_rows({**FACTS, **TRTEXEC}))
    assert rows["onnxruntime"] == "1.27.0"
    assert rows["openvino"] == "not usable: No module named 'openvino'"
    assert rows["trtexec"] == "10.3.0  /usr/src/tensorrt/bin/trtexec"


MANIFEST = {
    "input": "uint8_nhwc",
    "preprocessing": {"image_size": 24, "channels": 3, "mean": [0.4] * 3, "std": [0.2] * 3},
    "targets": {"onnxruntime-fp32": {"batch_max": 1024}},
}
SECTIONS = {"measure": {"threads": [1]}, "build": {"batch_min": 2, "batch_opt": 4, "batch_max": 8}}


@pytest.mark.parametrize(
    ("target", "onnx", "batches"),
    [
        ("onnxruntime-fp32", None, (1, 1024)),
        ("tensorrt-fp16", "measured/x/onnx/tensorrt-fp16.onnx", (2, 8)),
    ],
)
def test_a_request_holds_what_a_session_needs(
    target: str, onnx: str | None, batches: tuple[int, int]
) -> None:
    request = measuring_request(target, "measured/x", None, MANIFEST, SECTIONS)
    assert is_built_there(target) == (onnx is not None)
    assert request["onnx"] == onnx
    assert (request["batch_min"], request["batch_max"]) == batches
    assert request["place"] == f"measured/x/results/{target}"
    source = source_of(request)
    assert source.precision == target.rpartition("-")[2]
    assert source.image_shape == (24, 24, 3)
    assert source.mean == (0.4, 0.4, 0.4)
