"""What OpenVINO computes inside a built target, by the names that its ONNX file gave the values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from stages.runtimes.openvino.package import import_openvino


def value_names(file: Path) -> set[str]:
    """Every value of the target that still bears a name."""
    model = import_openvino().Core().read_model(str(file))
    return {name for op in model.get_ordered_ops() for output in op.outputs() for name in output.get_names()}


def target_values(
    file: Path, names: Sequence[str], image_input: np.ndarray, *, bf16: bool = False
) -> dict[str, np.ndarray]:
    """The values of these names on the CPU, in bfloat16 only if asked for. Layers that OpenVINO would
    fuse are kept apart by asking for what lies between them."""
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
