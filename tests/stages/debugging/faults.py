"""ONNX files with a fault planted at a known node, made of a network that was really trained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.stages.onnx_files.trained import digits
from tests.stages.onnx_files.trained_files import exported

ROOT = Path(__file__).parents[3]


def changed(source: Path, place: Path, change: Callable[[onnx.ModelProto], str]) -> str:
    """Writes a changed copy of a file; returns what `change` does, the name of the node at fault."""
    model = onnx.load(source)
    node = change(model)
    onnx.save(model, place)
    return node


def student() -> Path:
    return exported() / "student.onnx"


def images(folder: Path, count: int = 16) -> Path:
    np.save(folder / "images.npy", digits().test.images.batch(np.arange(count)))
    return folder / "images.npy"


def other_weight(model: onnx.ModelProto) -> str:
    """One number of the weights of the eleventh convolution is another."""
    node = [node for node in model.graph.node if node.op_type == "Conv"][10]
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] += 1.0
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return str(node.name)


def healed(model: onnx.ModelProto) -> str:
    """A value that is doubled and halved again right away: wrong in between, of no consequence."""
    position, node = next(
        (place, node) for place, node in enumerate(model.graph.node) if node.op_type == "Relu"
    )
    kept = node.output[0]
    for reader in model.graph.node:
        for place, name in enumerate(reader.input):
            if name == kept:
                reader.input[place] = "halved"
    node.output[0] = "whole"
    model.graph.initializer.append(numpy_helper.from_array(np.float32(2.0), "two"))
    model.graph.node.insert(position + 1, helper.make_node("Mul", ["whole", "two"], [kept], name="double"))
    model.graph.node.insert(position + 2, helper.make_node("Div", [kept, "two"], ["halved"], name="halve"))
    return "double"


def bad_scale(model: onnx.ModelProto) -> str:
    """The scale of the Q/DQ pair before the last convolution is a hundredth of what it was.

    Half way the fault may be in a gate of a squeeze-and-excite block that saturates anyway, and heal.
    """
    pairs = {
        node.output[0]: node
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0].endswith("_QuantizeLinear_Output")
    }
    convolutions = [node for node in model.graph.node if node.op_type == "Conv" and node.input[0] in pairs]
    node = pairs[convolutions[-1].input[0]]
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
    small = numpy_helper.to_array(tensor) / np.float32(100.0)
    tensor.CopyFrom(numpy_helper.from_array(small.astype(np.float32), tensor.name))
    return str(node.name)


def overflowing(folder: Path) -> tuple[Path, Path, Path, str]:
    """(fp32 file, fp16 file, inputs, node at fault): a square that leaves fp16's range half way."""
    rng = np.random.default_rng(0)
    weights = {"w1": rng.normal(size=(8, 16)), "w2": rng.normal(size=(16, 4)), "gain": np.array(150.0)}

    def graph(kind: int, dtype: Any) -> onnx.ModelProto:
        nodes = [
            helper.make_node("MatMul", ["input", "w1"], ["hidden"], name="first"),
            helper.make_node("Relu", ["hidden"], ["active"], name="relu"),
            helper.make_node("Mul", ["active", "gain"], ["large"], name="scale"),
            helper.make_node("Mul", ["large", "large"], ["square"], name="square"),
            helper.make_node("MatMul", ["square", "w2"], ["logits"], name="last"),
        ]
        info = [helper.make_tensor_value_info("input", kind, ["batch", 8])]
        out = [helper.make_tensor_value_info("logits", kind, ["batch", 4])]
        tensors = [numpy_helper.from_array(value.astype(dtype), name) for name, value in weights.items()]
        made = helper.make_graph(nodes, "overflow", info, out, tensors)
        return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)

    onnx.save(graph(TensorProto.FLOAT, np.float32), folder / "whole.onnx")
    onnx.save(graph(TensorProto.FLOAT16, np.float16), folder / "half.onnx")
    np.save(folder / "given.npy", rng.normal(size=(6, 8)).astype(np.float32))
    return folder / "whole.onnx", folder / "half.onnx", folder / "given.npy", "square"


def kdpipe(folder: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """The command line, in a folder of its own."""
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *map(str, words)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "KDPIPE_STORE": "", "OMP_NUM_THREADS": "1"},
    )


def document(finished: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(finished.stdout)
    return found
