"""The recipes on a vision transformer, whose float parts are the delicate ones."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import timm
import torch

from stages.onnx_files.exporting import export_network
from stages.onnx_files.lint import tensorrt_ready
from stages.onnx_files.quantizing import RECIPES, count_nodes, float_nodes, prepare, quantized
from stages.onnx_files.ranges import Method, find_ranges, float_activations

pytestmark = pytest.mark.long

CARD: dict[str, Any] = {
    "model": "test_vit",
    "classes": ["a", "b", "c", "d"],
    "input": "uint8_nhwc",
    "preprocessing": {
        "image_size": 16,
        "channels": 1,
        "scale": 1 / 255,
        "mean": [0.5],
        "std": [0.29],
    },
}


def _images(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 16, 16, 1), dtype=np.uint8)


@functools.cache
def _vit() -> onnx.ModelProto:
    torch.manual_seed(0)
    network = timm.create_model("test_vit", num_classes=4, in_chans=1, img_size=16, patch_size=4)
    torch.nn.init.normal_(network.get_classifier().weight, std=0.3)
    return export_network(network, CARD, role="student", opset=20, batch_max=64).model


def _int8(name: str) -> onnx.ModelProto:
    recipe = RECIPES[name]
    model = prepare(_vit())
    skipped = float_nodes(model, [])
    ranges = find_ranges(
        model,
        float_activations(model, recipe.op_types, skipped),
        lambda: [_images(12)[index : index + 1] for index in range(12)],
        [Method("minmax")],
    )
    return quantized(model, ranges[Method("minmax")], recipe, per_channel=True, skipped=skipped, card=CARD)


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_transformer_keeps_its_logits(name: str) -> None:
    found = []
    for model in (_vit(), _int8(name)):
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        found.append(session.run(["logits"], {"input": _images(32)})[0])
    error = np.sqrt(np.mean((found[0] - found[1]) ** 2))
    assert 0 < error < 0.1 * found[0].std()


@pytest.mark.parametrize("name", list(RECIPES))
def test_norms_softmax_and_biases_stay_float(name: str) -> None:
    graph = _int8(name).graph
    producers = {out: node for node in graph.node for out in node.output}
    floats = {t.name for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    norms = [node for node in graph.node if node.op_type == "LayerNormalization"]
    biases = [node for node in graph.node if node.name.endswith("qkv/Add")]
    assert len(norms) == 13
    assert len(biases) == 6
    for node in norms:
        assert {node.input[1], node.input[2]} <= floats
    for node in biases:
        assert floats.intersection(node.input)
    for node in graph.node:
        if node.op_type == "Gelu":
            assert producers[node.input[0]].op_type != "DequantizeLinear"


def test_the_given_graph_is_left_as_it_is_and_every_product_is_quantized(tmp_path: Any) -> None:
    before = _vit().SerializeToString(deterministic=True)
    model = _int8("signed")
    assert _vit().SerializeToString(deterministic=True) == before
    path = tmp_path / "signed.onnx"
    path.write_bytes(model.SerializeToString())
    assert tensorrt_ready(path) == []
    producers = {out: node for node in model.graph.node for out in node.output}
    products = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm", "Conv")]
    assert len(products) == 38
    for node in products:
        assert producers[node.input[0]].op_type == producers[node.input[1]].op_type == "DequantizeLinear"
    counts = count_nodes(model)
    assert counts["quantize_nodes"] < counts["dequantize_nodes"]
