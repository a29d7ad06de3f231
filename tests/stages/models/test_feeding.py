"""Images at a network's own size and by its own constants."""

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
from stages.models.feeding import Resize, fed, resize_to
from stages.models.settings import ModelSettings
from stages.training.supply import Normalise
from tests.errors import raises

DATA = Preprocessing(16, 3, "bilinear", True, SCALE, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
CPU = torch.device("cpu")


def slow_resize(image: Tensor, side: int) -> Tensor:
    """(height, width) float64 -> (side, side): each pixel the mean of the old ones, weighed by a triangle
    around its centre, as wide as two of the larger pixels; cut off at the border."""

    def weights(size: int) -> list[list[float]]:
        ratio = size / side
        reach = max(ratio, 1.0)
        rows = []
        for place in range(side):
            centre = (place + 0.5) * ratio - 0.5
            row = [max(0.0, 1.0 - abs(old - centre) / reach) for old in range(size)]
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
def test_a_resize_is_the_weighed_mean_that_it_is_said_to_be(size: int, side: int, seed: int) -> None:
    image = torch.rand(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = slow_resize(image, side)
    shown = image.float()[None, None]
    torch.testing.assert_close(resize_to(shown, side)[0, 0].double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(Resize(size, side)(shown)[0, 0].double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("size", "side"), [(16, 24), (24, 16), (32, 224), (224, 160), (17, 5)])
def test_a_file_s_resize_is_that_of_training(size: int, side: int) -> None:
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    resize = Resize(size, side)
    torch.testing.assert_close(resize(images), resize_to(images, side), rtol=1e-5, atol=1e-5)
    # Rows that sum to one: it may change places with a normalisation.
    torch.testing.assert_close(resize.weights.sum(1), torch.ones(side))
    assert not resize.state_dict()


@pytest.mark.parametrize("channels_last", [True, False])
def test_images_come_out_normalised_by_the_networks_constants_at_its_size(channels_last: bool) -> None:
    own = fed(ModelSettings(model="resnet18", image_size=24, mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7]), DATA)
    images = torch.randint(0, 256, (2, 3, 16, 16), generator=torch.Generator().manual_seed(2))
    found = Normalise(own, CPU, channels_last=channels_last)(images.to(torch.uint8))
    assert found.shape == (2, 3, 24, 24)
    assert found.dtype == torch.float32
    assert found.is_contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )
    for channel, (mean, std) in enumerate(zip((0.1, 0.2, 0.3), (0.5, 0.6, 0.7), strict=True)):
        resized = slow_resize(images[1, channel].double(), 24)
        torch.testing.assert_close(
            found[1, channel].double(), (resized / 255 - mean) / std, rtol=1e-4, atol=1e-4
        )


def test_without_keys_of_its_own_a_network_is_fed_as_the_data_say() -> None:
    assert fed(ModelSettings(model="resnet18"), DATA) == DATA
    # The data's own size is no other size: one normalisation then serves both networks.
    same = fed(ModelSettings(model="resnet18", image_size=16), DATA)
    assert same == DATA
    assert same.side == 16
    assert "network_size" not in same.as_json()


def test_the_card_tells_the_size_and_the_images_alike() -> None:
    own = fed(ModelSettings(model="resnet18", image_size=24), DATA)
    assert (own.image_size, own.network_size, own.side) == (16, 24, 24)
    assert Preprocessing.from_json(own.as_json()) == own
    assert own.as_json()["network_size"] == 24


def test_constants_for_other_channels_are_refused() -> None:
    with raises(ModelError, what=r"1 values of mean and std for images of 3"):
        fed(ModelSettings(model="resnet18", mean=[0.5], std=[0.5]), DATA)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"mean": [0.5]}, "belong together"),
        ({"std": [0.5]}, "belong together"),
        ({"mean": [0.5, 0.5, 0.5], "std": [0.5]}, "one value a channel"),
        ({"mean": [0.5, 0.5], "std": [0.5, 0.5]}, "one value a channel"),
        ({"mean": [], "std": []}, "one value a channel"),
        ({"mean": [0.5], "std": [0.0]}, "above zero"),
        ({"image_size": 4}, "greater than or equal to 8"),
    ],
)
def test_settings_that_cannot_be(told: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ModelSettings.model_validate({"model": "resnet18", **told})
