from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from stages.onnx_files.metadata import feed, image_shape, read_metadata, write_metadata

CARD: dict[str, Any] = {
    "model": "any",
    "classes": ["Blåbär", "b"],
    "input": "float32_nchw",
    "preprocessing": {
        "image_size": 4,
        "channels": 2,
        "scale": 1 / 255,
        "mean": [0.5, 0.25],
        "std": [0.5, 0.25],
    },
}


def test_a_plain_file_is_fed_normalised_channels_first() -> None:
    images = np.zeros((3, 4, 4, 2), dtype=np.uint8)
    images[1, 2, 3] = (255, 51)
    fed = feed(images, CARD)
    assert fed.shape == (3, 2, 4, 4)
    assert fed.dtype == np.float32
    assert fed.flags.c_contiguous
    np.testing.assert_allclose(fed[1, :, 2, 3], [1.0, -0.2], atol=1e-6)
    np.testing.assert_allclose(fed[0], -1.0)


def test_a_file_with_preprocessing_is_fed_the_bytes() -> None:
    images = np.arange(32, dtype=np.uint8).reshape(1, 4, 4, 2)
    fed = feed(images[:, ::-1], {**CARD, "input": "uint8_nhwc"})
    assert fed.dtype == np.uint8
    assert fed.flags.c_contiguous
    np.testing.assert_array_equal(fed, images[:, ::-1])


def test_the_image_s_shape_is_the_card_s() -> None:
    assert image_shape(CARD) == (4, 4, 2)


def test_facts_survive_in_the_file_and_replace_what_was_there() -> None:
    model = onnx.ModelProto()
    model.metadata_props.add(key="onnx.infer", value="somebody")
    write_metadata(model, CARD)
    assert read_metadata(model) == {field: CARD[field] for field in ("classes", "preprocessing", "input")}
    assert [entry.key for entry in model.metadata_props] == [
        "kdpipe.classes",
        "kdpipe.input",
        "kdpipe.preprocessing",
    ]


def test_a_file_of_somebody_else_is_told_apart() -> None:
    with pytest.raises(ValueError, match=r"kdpipe\.classes"):
        read_metadata(onnx.ModelProto())
