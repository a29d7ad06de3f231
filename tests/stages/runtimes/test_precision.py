from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from pipeline.errors import StageError
from stages.runtimes.images import natural_images
from stages.runtimes.parity import compare, source_logits
from stages.runtimes.precision import to_half
from tests.stages.runtimes.networks import source_of


def _weights(model: onnx.ModelProto, kind: int) -> list[onnx.TensorProto]:
    return [tensor for tensor in model.graph.initializer if tensor.data_type == kind]


def _scale_weight(model: onnx.ModelProto, index: int, factor: float) -> str:
    """Multiplies the index-th weight matrix or kernel; returns its name."""
    kernels = [tensor for tensor in _weights(model, TensorProto.FLOAT) if len(tensor.dims) >= 2]
    kernels = [tensor for tensor in kernels if np.prod(tensor.dims) > 32]
    tensor = kernels[index]
    values = numpy_helper.to_array(tensor) * np.float32(factor)
    tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
    return tensor.name


@pytest.mark.parametrize("name", ["cnn", "mobilenet", "vit"])
def test_converted_file_agrees_with_the_float_file(name: str) -> None:
    source = source_of(name, "fp16")
    model = onnx.load(str(source.onnx))
    half, report = to_half(model, source)
    images = natural_images(source.image_shape, 7, seed=11)
    found = source_logits(half.SerializeToString(), source, images)
    assert compare(found, source_logits(source.onnx, source, images)).relative < 0.01
    assert half.ByteSize() < 0.65 * model.ByteSize()
    assert report.half_nodes >= report.nodes / 3
    assert not report.kept_for_range


def test_inputs_and_outputs_keep_their_types() -> None:
    source = source_of("cnn", "fp16")
    half, _ = to_half(onnx.load(str(source.onnx)), source)
    kinds = {info.name: info.type.tensor_type.elem_type for info in (*half.graph.input, *half.graph.output)}
    assert kinds == {
        "input": TensorProto.UINT8,
        "logits": TensorProto.FLOAT,
        "probabilities": TensorProto.FLOAT,
    }


def test_normalisations_softmax_and_preprocessing_stay_in_fp32() -> None:
    source = source_of("vit", "fp16")
    half, _ = to_half(onnx.load(str(source.onnx)), source)
    typed = onnx.shape_inference.infer_shapes(half)
    kinds = {info.name: info.type.tensor_type.elem_type for info in typed.graph.value_info}
    kinds |= {info.name: info.type.tensor_type.elem_type for info in typed.graph.output}
    by_operator: dict[str, set[int]] = {}
    for node in typed.graph.node:
        by_operator.setdefault(node.op_type, set()).update(kinds[name] for name in node.output)
    assert by_operator["LayerNormalization"] == {TensorProto.FLOAT}
    assert by_operator["Softmax"] == {TensorProto.FLOAT}
    assert by_operator["Sub"] == {TensorProto.FLOAT}
    assert by_operator["MatMul"] == {TensorProto.FLOAT16}
    assert by_operator["Conv"] == {TensorProto.FLOAT16}


def test_a_weight_beyond_fp16_keeps_its_layer_in_fp32() -> None:
    source = source_of("cnn", "fp16")
    model = onnx.load(str(source.onnx))
    name = _scale_weight(model, 1, 1e7)
    expected = source_logits(model.SerializeToString(), source, natural_images(source.image_shape, 4, seed=2))
    half, report = to_half(model, source)
    assert report.kept_for_range
    assert name in {tensor.name for tensor in _weights(half, TensorProto.FLOAT)}
    found = source_logits(half.SerializeToString(), source, natural_images(source.image_shape, 4, seed=2))
    assert np.isfinite(found).all()
    assert compare(found, expected).relative < 0.05


def test_an_activation_beyond_fp16_keeps_its_layers_in_fp32() -> None:
    source = source_of("cnn", "fp16")
    model = onnx.load(str(source.onnx))
    _scale_weight(model, 0, 3e4)  # the weights fit, what they make of an image does not
    half, report = to_half(model, source)
    assert report.kept_for_range
    images = natural_images(source.image_shape, 4, seed=2)
    found = source_logits(half.SerializeToString(), source, images)
    assert compare(found, source_logits(model.SerializeToString(), source, images)).relative < 0.05


def test_weights_that_become_zero_are_counted() -> None:
    source = source_of("cnn", "fp16")
    model = onnx.load(str(source.onnx))
    _scale_weight(model, 2, 1e-8)
    _, report = to_half(model, source)
    assert report.facts()["weights_flushed_to_zero"] > 0.01


def test_a_weight_that_is_no_number_is_refused_by_name() -> None:
    source = source_of("cnn", "fp16")
    model = onnx.load(str(source.onnx))
    name = _scale_weight(model, 1, float("nan"))
    with pytest.raises(StageError, match="not a finite number") as caught:
        to_half(model, source)
    assert caught.value.where == name


def test_a_quantised_file_is_refused() -> None:
    source = replace(source_of("cnn", "int8"), precision="fp16")
    with pytest.raises(StageError, match="quantised"):
        to_half(onnx.load(str(source.onnx)), source)


def test_a_plain_graph_is_converted_too() -> None:
    source = source_of("cnn", "fp16", preprocessing=False)
    half, _ = to_half(onnx.load(str(source.onnx)), source)
    images = natural_images(source.image_shape, 4)
    found = source_logits(half.SerializeToString(), source, images)
    assert compare(found, source_logits(source.onnx, source, images)).relative < 0.01
