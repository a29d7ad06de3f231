"""Ranges on graphs whose activations are known."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pipeline.errors import StageError
from stages.onnx_files.histograms import ENTROPY_BINS, entropy_bins
from stages.onnx_files.ranges import Method, find_ranges, float_activations
from tests.errors import raises

NAMES = ["minmax", "moving_average", "percentile", "entropy"]


def _graph(operator: str = "Relu") -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    shape = ["batch", 1000]
    return helper.make_model(
        helper.make_graph(
            [helper.make_node(operator, ["input"], ["middle"], name="one"),
             helper.make_node("Neg", ["middle"], ["logits"], name="two")],
            "known",
            [value("input", TensorProto.FLOAT, shape)],
            [value("logits", TensorProto.FLOAT, shape)],
            value_info=[value("middle", TensorProto.FLOAT, shape)],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )  # fmt: skip


def _find(
    images: Iterable[np.ndarray], method: str, percentile: float = 99.0, operator: str = "Relu"
) -> dict[str, list[float]]:
    listed = [image.astype(np.float32).reshape(1, -1) for image in images]
    chosen = Method(method, percentile)
    found = find_ranges(_graph(operator), ("input", "middle", "logits"), lambda: listed, [chosen])[chosen]
    return {name: [low, high] for name, low, high in zip(found.tensors, found.low, found.high, strict=True)}


def _normal(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).normal(size=(count, 1000)))


def test_minmax_finds_the_extremes_of_all_images() -> None:
    images = _normal(20)
    found = _find(images, "minmax")
    assert found["input"] == pytest.approx([np.min(images), np.max(images)], rel=1e-6)
    assert found["middle"] == pytest.approx([0.0, np.max(images)], rel=1e-6)
    assert found["logits"] == pytest.approx([-np.max(images), 0.0], rel=1e-6)


def test_moving_average_is_the_mean_over_groups_of_sixteen() -> None:
    images = _normal(40)
    images[3][5] = 1000.0
    groups = [np.max(images[:16]), np.max(images[16:32]), np.max(images[32:])]
    assert _find(images, "moving_average")["input"][1] == pytest.approx(np.mean(groups), rel=1e-6)
    assert _find(images, "minmax")["input"][1] == 1000.0


def test_percentile_holds_that_share_of_the_values() -> None:
    images = _normal(50)
    low, high = _find(images, "percentile", 99.0)["input"]
    values = np.concatenate(images)
    assert ((values >= low) & (values <= high)).mean() == pytest.approx(0.99, abs=0.002)
    assert low == pytest.approx(-2.576, abs=0.08)
    assert _find(images, "percentile", 100.0)["input"] == pytest.approx(
        [values.min(), values.max()], rel=1e-3
    )


def test_entropy_cuts_a_thin_tail_off() -> None:
    images = _normal(30)
    images[0][:3] = 40.0
    low, high = _find(images, "entropy")["input"]
    assert 2.5 < high < 15.0
    assert low == pytest.approx(max(np.min(images), -high), rel=1e-6)


def test_entropy_keeps_all_of_an_even_spread() -> None:
    assert entropy_bins(np.full(ENTROPY_BINS, 100)) > 0.9 * ENTROPY_BINS
    assert entropy_bins(np.zeros(ENTROPY_BINS, dtype=np.int64)) == ENTROPY_BINS


@pytest.mark.parametrize("method", NAMES)
def test_a_dead_tensor_is_told_and_stays_harmless(method: str) -> None:
    images = [-np.abs(image) - 0.1 for image in _normal(4)]
    listed = [image.astype(np.float32).reshape(1, -1) for image in images]
    chosen = Method(method, 99.0)
    found = find_ranges(_graph(), ("input", "middle"), lambda: listed, [chosen])[chosen]
    assert found.constant() == ["middle"]
    assert np.isfinite(found.low).all()


def test_values_that_are_not_finite_name_their_tensor() -> None:
    with raises(StageError, what="not finite") as caught:
        _find([np.full(1000, 200.0)], "minmax", operator="Exp")
    assert "middle" in caught.value.where


def test_blank_images_are_no_calibration() -> None:
    with raises(StageError, what="ever changes"):
        _find([np.zeros(1000)] * 3, "minmax")


def test_only_float_activations_of_the_chosen_nodes_count() -> None:
    assert float_activations(_graph(), ("Relu", "Neg"), {"two"}) == ("input", "middle")
    assert float_activations(_graph(), ("Conv",), set()) == ()
