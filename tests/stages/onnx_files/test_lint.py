"""Every rule of the lint fires on a graph that breaks it, and on no other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from stages.onnx_files.lint import tensorrt_ready

Breaks = Callable[[onnx.ModelProto], None]


def _sound() -> onnx.ModelProto:
    """One quantized product with a float bias, as the parser takes it."""
    value = helper.make_tensor_value_info
    constant = numpy_helper.from_array
    weight = np.arange(12, dtype=np.int8).reshape(3, 4)
    return helper.make_model(
        helper.make_graph(
            [
                helper.make_node("QuantizeLinear", ["input", "scale", "zero"], ["q"], name="Q"),
                helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"], name="DQ"),
                helper.make_node("DequantizeLinear", ["weight", "scales", "zeros"], ["w"], name="W", axis=0),
                helper.make_node("Gemm", ["dq", "w", "bias"], ["logits"], name="product", transB=1),
            ],
            "sound",
            [value("input", TensorProto.FLOAT, ["batch", 4])],
            [value("logits", TensorProto.FLOAT, ["batch", 3])],
            [
                constant(np.float32(0.1), "scale"),
                constant(np.int8(0), "zero"),
                constant(weight, "weight"),
                constant(np.full(3, 0.1, np.float32), "scales"),
                constant(np.zeros(3, np.int8), "zeros"),
                constant(np.zeros(3, np.float32), "bias"),
            ],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )


def _node(model: onnx.ModelProto, name: str) -> NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def _replace(model: onnx.ModelProto, name: str, value: np.ndarray) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(value, name))


def _shifted(model: onnx.ModelProto) -> None:
    _replace(model, "zero", np.array(3, np.int8))


def _unsigned(model: onnx.ModelProto) -> None:
    _replace(model, "zero", np.array(0, np.uint8))


def _without_zero_point(model: onnx.ModelProto) -> None:
    del _node(model, "Q").input[2]


def _quantized_bias(model: onnx.ModelProto) -> None:
    _replace(model, "bias", np.zeros(3, np.int32))
    node = helper.make_node("DequantizeLinear", ["bias", "scales"], ["b"], name="B", axis=0)
    model.graph.node.insert(0, node)
    _node(model, "product").input[2] = "b"


def _wrong_axis(model: onnx.ModelProto) -> None:
    _node(model, "W").attribute[0].i = 1
    _replace(model, "scales", np.full(4, 0.1, np.float32))
    _replace(model, "zeros", np.zeros(4, np.int8))


def _old(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 18


def _foreign(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def _fixed_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4


def _two_files(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[2]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.data")


def _hidden_scale(model: onnx.ModelProto) -> None:
    model.graph.node.insert(0, helper.make_node("Identity", ["scales"], ["same"], name="I"))
    _node(model, "W").input[1] = "same"


def _hidden_weight(model: onnx.ModelProto) -> None:
    _replace(model, "weight", np.ones((3, 4), np.float32))
    model.graph.node.insert(0, helper.make_node("Identity", ["weight"], ["same"], name="I"))
    _node(model, "product").input[1] = "same"
    model.graph.node.remove(_node(model, "W"))


def _computed_scale(model: onnx.ModelProto) -> None:
    model.graph.node.insert(0, helper.make_node("ReduceMax", ["input"], ["found"], name="R", keepdims=0))
    _node(model, "Q").input[1] = "found"


def _scale_of_zero(model: onnx.ModelProto) -> None:
    _replace(model, "scales", np.array([0.1, 0.0, 0.1], np.float32))


def _activation_by_channel(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.full(4, 0.1, np.float32), "many"))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(4, np.int8), "manyzeros"))
    for name in ("Q", "DQ"):
        _node(model, name).input[1], _node(model, name).input[2] = "many", "manyzeros"


def _lint(model: onnx.ModelProto, folder: Path) -> list[str]:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return tensorrt_ready(path)


def test_a_sound_file_has_no_findings(tmp_path: Path) -> None:
    onnx.checker.check_model(_sound(), full_check=True)
    assert _lint(_sound(), tmp_path) == []


@pytest.mark.parametrize(
    ("breaks", "finding", "count"),
    [
        (_shifted, "The zero point of Q is not zero", 2),
        (_unsigned, "The zero point of Q is uint8, expected int8", 2),
        (_without_zero_point, "Q has no zero point and so quantizes to uint8", 1),
        (_quantized_bias, "B dequantizes an int32 bias", 1),
        (_wrong_axis, "scales along axis 1; its output channels are axis 0", 1),
        (_old, "operator set is 18, expected at least 19", 1),
        (_foreign, "operator set 'com.microsoft'", 1),
        (_fixed_batch, "batch dimension of input is not symbolic", 1),
        (_two_files, "not a single file: 1 weights are outside", 1),
        (_hidden_scale, "Identity node hides a constant of W", 1),
        (_hidden_weight, "Identity node hides the weight of product", 1),
        (_computed_scale, "scale of Q is not a constant", 1),
        (_scale_of_zero, "scale of W is not above zero", 1),
        (_activation_by_channel, "Q quantizes an activation with several scales", 1),
    ],
)
def test_each_rule_fires_alone(breaks: Breaks, finding: str, count: int, tmp_path: Path) -> None:
    model = _sound()
    breaks(model)
    findings = _lint(model, tmp_path)
    assert len(findings) == count, findings
    assert finding in findings[0]


@pytest.mark.parametrize(("kind", "axis"), [("Conv", 0), ("ConvTranspose", 1), ("MatMul", 1), ("Gemm", 1)])
def test_the_output_channels_of_every_weighted_node(kind: str, axis: int, tmp_path: Path) -> None:
    shape = (5, 6, 3, 3) if "Conv" in kind else (5, 6)
    for stated in (0, 1):
        model = _sound()
        _replace(model, "weight", np.ones(shape, np.int8))
        _replace(model, "scales", np.full(shape[stated], 0.1, np.float32))
        _replace(model, "zeros", np.zeros(shape[stated], np.int8))
        _node(model, "W").attribute[0].i = stated
        product = _node(model, "product")
        product.op_type = kind
        del product.attribute[:]
        assert bool(_lint(model, tmp_path)) == (stated != axis)
