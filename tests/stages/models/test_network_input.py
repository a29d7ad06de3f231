"""Images at a network's own size and with its own mean and std."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from pipeline.errors import ModelError
from stages.data.preprocessing import SCALE, Preprocessing
from stages.models.network_input import MatrixResize, network_preprocessing, resize_to
from stages.models.settings import ModelSettings
from stages.training.supply import Normalise
from tests.errors import raises

DATA = Preprocessing(16, 3, "bilinear", True, SCALE, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
CPU = torch.device("cpu")


def slow_resize(image: Tensor, side: int) -> Tensor:
    """Resize (height, width), float64, to (side, side) by the definition.

    Each pixel is the mean of the old pixels, weighted by a triangle around its centre. The triangle is as
    wide as two of the larger pixels and ends at the border.
    """

    def weights(size: int) -> list[list[float]]:
        ratio = size / side
        half_width = max(ratio, 1.0)
        rows = []
        for index in range(side):
            centre = (index + 0.5) * ratio - 0.5
            row = [max(0.0, 1.0 - abs(old - centre) / half_width) for old in range(size)]
            rows.append([value / math.fsum(row) for value in row])
        return rows

    down, across = weights(image.shape[0]), weights(image.shape[1])
    return torch.tensor(
        [
            [
                math.fsum(
                    down[y][row] * across[x][column] * float(image[row, column])
                    for row in range(image.shape[0])
                    for column in range(image.shape[1])
                )
                for x in range(side)
            ]
            for y in range(side)
        ],
        dtype=torch.float64,
    )


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 9), st.integers(1, 14), st.integers(0, 1000))
def test_a_resize_is_the_weighted_mean(size: int, side: int, seed: int) -> None:
    image = torch.rand(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = slow_resize(image, side)
    shown = image.float()[None, None]
    torch.testing.assert_close(resize_to(shown, side)[0, 0].double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(MatrixResize(size, side)(shown)[0, 0].double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("size", "side"), [(16, 24), (24, 16), (32, 224), (224, 160), (17, 5)])
def test_a_file_s_resize_is_that_of_training(size: int, side: int) -> None:
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    resize = MatrixResize(size, side)
    torch.testing.assert_close(resize(images), resize_to(images, side), rtol=1e-5, atol=1e-5)
    # Rows sum to one: the resize commutes with a normalisation.
    torch.testing.assert_close(resize.weights.sum(1), torch.ones(side))
    assert not resize.state_dict()


@pytest.mark.long
@pytest.mark.parametrize("channels_last", [True, False])
def test_images_come_out_normalised_by_the_networks_constants_at_its_size(channels_last: bool) -> None:
    own = network_preprocessing(
        ModelSettings(model="resnet18", image_size=24, mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7]), DATA
    )
    images = torch.randint(0, 256, (2, 3, 16, 16), generator=torch.Generator().manual_seed(2))
    normalised = Normalise(own, CPU, channels_last=channels_last)(images.to(torch.uint8))
    assert normalised.shape == (2, 3, 24, 24)
    assert normalised.dtype == torch.float32
    assert normalised.is_contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )
    for channel, (mean, std) in enumerate(zip((0.1, 0.2, 0.3), (0.5, 0.6, 0.7), strict=True)):
        resized = slow_resize(images[1, channel].double(), 24)
        torch.testing.assert_close(
            normalised[1, channel].double(), (resized / 255 - mean) / std, rtol=1e-4, atol=1e-4
        )


def test_without_own_keys_a_network_has_the_preprocessing_of_the_data() -> None:
    assert network_preprocessing(ModelSettings(model="resnet18"), DATA) == DATA
    # The data's size is not another size: both networks then share a normalisation.
    same = network_preprocessing(ModelSettings(model="resnet18", image_size=16), DATA)
    assert same == DATA
    assert same.side == 16
    assert "network_size" not in same.as_json()


def test_the_card_has_both_sizes() -> None:
    own = network_preprocessing(ModelSettings(model="resnet18", image_size=24), DATA)
    assert (own.image_size, own.network_size, own.side) == (16, 24, 24)
    assert Preprocessing.from_json(own.as_json()) == own
    assert own.as_json()["network_size"] == 24


def test_constants_for_other_channels_are_refused() -> None:
    with raises(ModelError, what=r"1 values of mean and std for images of 3"):
        network_preprocessing(ModelSettings(model="resnet18", mean=[0.5], std=[0.5]), DATA)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"mean": [0.5]}, "belong together"),
        ({"std": [0.5]}, "belong together"),
        ({"mean": [0.5, 0.5, 0.5], "std": [0.5]}, "one value for each channel"),
        ({"mean": [0.5, 0.5], "std": [0.5, 0.5]}, "one value for each channel"),
        ({"mean": [], "std": []}, "one value for each channel"),
        ({"mean": [0.5], "std": [0.0]}, "above zero"),
        ({"image_size": 4}, "greater than or equal to 8"),
    ],
)
def test_settings_that_cannot_be(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ModelSettings.model_validate({"model": "resnet18", **keys})
