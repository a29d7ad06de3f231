from __future__ import annotations

import pytest
import torch
from torch import nn

from stages.models.create import create
from stages.models.macs import macs
from stages.models.settings import ModelSettings


def test_counted_by_hand() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 16 * 16, 10)
    )
    assert macs(network, 16, 3) == 8 * 3 * 9 * 16 * 16 + 8 * 16 * 16 * 10
    assert network.training
    assert not network[1].running_mean.any()  # type: ignore[operator]


@pytest.mark.parametrize(
    # Published: 1.82 G for ResNet-18 (He et al., 2016, 1.8), 1.26 G for ViT-Ti/16 with its attention.
    ("model", "published"),
    [("resnet18", 1.82e9), ("vit_tiny_patch16_224", 1.26e9)],
)
def test_published_figures_at_224_pixels(model: str, published: float) -> None:
    network = create(ModelSettings(model=model), classes=1000, channels=3, image_size=224)
    assert macs(network, 224, 3) == pytest.approx(published, rel=0.02)


def test_the_random_state_is_left_alone() -> None:
    network = create(ModelSettings(model="mobilenetv3_small_050"), classes=3, channels=1, image_size=32)
    state = torch.get_rng_state()
    macs(network, 32, 1)
    assert torch.equal(torch.get_rng_state(), state)
