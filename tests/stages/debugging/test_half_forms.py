"""The 16-bit forms of a small network beside the network itself, with every rounding written out."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.debugging.line import TOLERANCES
from stages.debugging.pair import compare_graphs
from stages.onnx_files.graphs import read_graph
from stages.runtimes.half.converting import convert_to_half
from stages.runtimes.half.proof import as_computed
from stages.runtimes.images import natural_images
from tests.stages.runtimes.networks import source_of


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_16_bit_form_is_healthy_value_by_value(precision: str, tmp_path: Path) -> None:
    source = source_of("cnn", precision)
    images = natural_images(source.image_shape, 8, seed=3)
    whole, feeds = read_graph(source.onnx), {"input": images}
    half, _ = convert_to_half(whole.model, source, images)
    found = compare_graphs(
        "whole -> half",
        read_graph(as_computed(half)),
        feeds,
        whole,
        feeds,
        TOLERANCES[precision],
        tmp_path / "out",
    )
    assert found["healthy"]
    assert found["compared"] > 20
