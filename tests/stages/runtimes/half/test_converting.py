from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from pipeline.errors import StageError, UsageError
from stages.runtimes.half import converting as precision
from stages.runtimes.half.converting import to_half
from stages.runtimes.half.proof import as_computed
from stages.runtimes.images import natural_images
from stages.runtimes.parity import compare, source_logits
from stages.runtimes.settings import BuildSettings
from stages.runtimes.tensorrt.family import prepare
from tests.errors import raises
from tests.stages.runtimes.networks import source_of

pytestmark = pytest.mark.long


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
    assert not report.fp32_for_range


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
    assert report.fp32_for_range
    assert name in {tensor.name for tensor in _weights(half, TensorProto.FLOAT)}
    found = source_logits(half.SerializeToString(), source, natural_images(source.image_shape, 4, seed=2))
    assert np.isfinite(found).all()
    assert compare(found, expected).relative < 0.05


def test_an_activation_beyond_fp16_keeps_its_layers_in_fp32() -> None:
    source = source_of("cnn", "fp16")
    model = onnx.load(str(source.onnx))
    _scale_weight(model, 0, 3e4)  # the weights fit, what they make of an image does not
    half, report = to_half(model, source)
    assert report.fp32_for_range
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
    with raises(StageError, what="not a finite number") as caught:
        to_half(model, source)
    assert caught.value.where == name


def test_a_quantized_file_is_refused() -> None:
    source = replace(source_of("cnn", "int8"), precision="fp16")
    with raises(StageError, what="quantized"):
        to_half(onnx.load(str(source.onnx)), source)


def test_a_plain_graph_is_converted_too() -> None:
    source = source_of("cnn", "fp16", preprocessing=False)
    half, _ = to_half(onnx.load(str(source.onnx)), source)
    images = natural_images(source.image_shape, 4)
    found = source_logits(half.SerializeToString(), source, images)
    assert compare(found, source_logits(source.onnx, source, images)).relative < 0.01


def _nodes_by_type(model: onnx.ModelProto) -> dict[str, int]:
    """By name of a node, the type of what it gives."""
    typed = onnx.shape_inference.infer_shapes(model).graph
    kinds = {info.name: info.type.tensor_type.elem_type for info in (*typed.value_info, *typed.output)}
    return {node.name: kinds[node.output[0]] for node in typed.node if node.output[0] in kinds}


@pytest.mark.parametrize("name", ["cnn", "mobilenet", "vit"])
def test_bf16_has_its_own_operator_set_and_agrees_with_every_rounding_written_out(name: str) -> None:
    source = source_of(name, "bf16")
    model = onnx.load(str(source.onnx))
    half, report = to_half(model, source)
    assert half.opset_import[0].version == 22, "the first whose convolutions take bfloat16"
    assert TensorProto.BFLOAT16 in _nodes_by_type(half).values()
    assert TensorProto.FLOAT16 not in _nodes_by_type(half).values()
    assert half.ByteSize() < 0.65 * model.ByteSize()
    images = natural_images(source.image_shape, 7, seed=11)
    found = source_logits(as_computed(half).SerializeToString(), source, images)
    relative = compare(found, source_logits(source.onnx, source, images)).relative
    assert 1e-4 < relative < 0.05, "rounded to eight digits, and no worse"
    assert report.facts()["bf16_nodes"] >= report.nodes / 3


def test_what_tensorrt_refuses_in_bf16_stays_in_fp32() -> None:
    source = source_of("mobilenet", "bf16")
    half, report = to_half(onnx.load(str(source.onnx)), source)
    kinds = _nodes_by_type(half)
    hard = {kinds[node.name] for node in half.graph.node if node.op_type == "HardSwish"}
    assert hard == {TensorProto.FLOAT}
    assert report.facts()["fp32_by_operator"]["HardSwish"] > 5
    in_fp16, _ = to_half(onnx.load(str(source.onnx)), replace(source, precision="fp16"))
    kinds = _nodes_by_type(in_fp16)
    assert TensorProto.FLOAT16 in {kinds[n.name] for n in in_fp16.graph.node if n.op_type == "HardSwish"}


@pytest.mark.parametrize(("name", "kind"), [("fp16", TensorProto.FLOAT16), ("bf16", TensorProto.BFLOAT16)])
def test_nodes_that_the_profile_names_stay_in_fp32(name: str, kind: int) -> None:
    source = source_of("cnn", name)
    model = onnx.load(str(source.onnx))
    first, second = [node.name for node in model.graph.node if node.op_type == "Conv"]
    half, report = to_half(model, source, [f"*{first[-3:]}"])
    kinds = _nodes_by_type(half)
    assert kinds[first] == TensorProto.FLOAT
    assert kinds[second] == kind
    assert report.facts()["fp32_on_request"] == [first]


def test_a_pattern_that_matches_nothing_names_what_is_near() -> None:
    source = source_of("cnn", "fp16")
    model = onnx.load(str(source.onnx))
    with raises(UsageError, what=r"build\.keep_float") as caught:
        to_half(model, source, ["node_Cnov*"])
    assert "node_Conv" in caught.value.hint
    assert "stage build" in caught.value.where


def test_the_report_tells_which_value_keeps_a_node_in_fp32() -> None:
    source = source_of("cnn", "fp16")
    model = onnx.load(str(source.onnx))
    _scale_weight(model, 0, 3e4)
    facts = to_half(model, source)[1].facts()
    for kept in facts["fp32_for_range"]:
        assert kept["magnitude"] > 65504 / 4
    assert {kept["tensor"] for kept in facts["fp32_for_range"]} >= {facts["largest_activation"]["tensor"]}
    assert facts["largest_activation"]["magnitude"] > 65504
    assert "a bf16 target needs none of these" in facts["advice"]
    in_bf16 = to_half(model, replace(source, precision="bf16"))[1].facts()
    assert in_bf16["fp32_for_range"] == []
    assert in_bf16["advice"] == ""


def test_an_overflow_is_refused_by_the_name_of_the_first_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """An overflow on the proof's images alone cannot be had otherwise: the range is told too high."""
    source = source_of("cnn", "fp16")
    model = onnx.load(str(source.onnx))
    _scale_weight(model, 0, 3e4)
    monkeypatch.setattr(precision, "HEADROOM", 1e-9)
    with raises(StageError, what="not finite") as caught:
        to_half(model, source)
    first = next(node for node in model.graph.node if node.op_type == "Conv")
    assert caught.value.where.endswith(f"node {first.name}")
    assert first.output[0] in caught.value.why
    assert "bf16" in caught.value.hint


def test_an_overflow_between_two_nodes_shows_in_the_graph_with_its_roundings() -> None:
    """Between two 16-bit nodes ONNX Runtime by itself leaves the rounding out on a CPU, and gives 1000."""
    half = TensorProto.FLOAT16
    nodes = [
        onnx.helper.make_node("Cast", ["input"], ["short"], to=half),
        onnx.helper.make_node("Mul", ["short", "much"], ["wide"], name="up"),
        onnx.helper.make_node("Mul", ["wide", "little"], ["back"], name="down"),
        onnx.helper.make_node("Cast", ["back"], ["logits"], to=TensorProto.FLOAT),
    ]
    info = onnx.helper.make_tensor_value_info
    weights = [numpy_helper.from_array(np.float16(v), n) for n, v in (("much", 1000.0), ("little", 0.001))]
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [info("input", TensorProto.FLOAT, ["batch", 3, 4, 4])],
        [info("logits", TensorProto.FLOAT, ["batch", 3, 4, 4])],
        initializer=weights,
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    source = replace(source_of("cnn", "fp16", preprocessing=False), mean=(0.0,) * 3, std=(0.001,) * 3)
    images = np.full((1, 4, 4, 3), 255, np.uint8)  # 1000 after normalising, a million after the first node
    assert np.isinf(source_logits(as_computed(model).SerializeToString(), source, images)).all()


def test_the_profiles_limit_is_the_proofs() -> None:
    source = source_of("cnn", "bf16")
    with raises(StageError, what="computes something else") as caught:
        prepare(source, BuildSettings(limit_bf16=1e-6))
    assert "1e-06 is the limit (build.limit_bf16)" in caught.value.why
    prepare(source, BuildSettings(limit_bf16=0.3))


def test_without_proofs_a_form_that_differs_is_kept_and_noted() -> None:
    source = source_of("cnn", "bf16")
    notes: list[str] = []
    half, facts = prepare(source, BuildSettings(limit_bf16=1e-6, prove=False), notes.append)
    assert TensorProto.BFLOAT16 in _nodes_by_type(half).values()
    assert facts["bf16"]["bf16_nodes"] > 0
    (said,) = notes
    assert "the bf16 form of the model computes something else" in said
    assert said.endswith("kept all the same (build.prove: false)")


def test_without_proofs_an_overflow_is_kept_and_noted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of("cnn", "fp16")
    model = onnx.load(str(source.onnx))
    _scale_weight(model, 0, 3e4)
    monkeypatch.setattr(precision, "HEADROOM", 1e-9)
    notes: list[str] = []
    to_half(model, source, note=notes.append)
    assert "not finite" in notes[0]
