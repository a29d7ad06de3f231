"""Compute the values inside a built OpenVINO target, by their names in the ONNX file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from stages.runtimes.openvino.package import import_openvino


def value_names(file: Path) -> set[str]:
    """Return the names of the target's values that still have one."""
    model = import_openvino().Core().read_model(str(file))
    return {name for op in model.get_ordered_ops() for output in op.outputs() for name in output.get_names()}


def target_values(
    file: Path, names: Sequence[str], image_input: np.ndarray, *, bf16: bool = False
) -> dict[str, np.ndarray]:
    """Compute values of the target on the CPU.

    Requesting the values between two layers keeps OpenVINO from fusing them.

    Args:
        file: The target's model file.
        names: Names of values.
        image_input: The model's input array.
        bf16: Whether to compute in bfloat16 rather than float32.
    """
    openvino = import_openvino()
    core = openvino.Core()
    model = core.read_model(str(file))
    present = {name for output in model.outputs for name in output.get_names()}
    model.add_outputs([name for name in names if name not in present])
    hint = "bf16" if bf16 else "f32"
    compiled = core.compile_model(
        model, "CPU", {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": 1}
    )
    results: Mapping = compiled({0: image_input})
    return {name: np.array(results[compiled.output(name)]) for name in names}
