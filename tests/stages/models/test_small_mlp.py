"""Mixer and ResMLP with small patches: built by name, with maps."""

from __future__ import annotations

import pytest
import timm
import torch

from pipeline.errors import ModelError
from stages.models.create import architecture_names, create
from stages.models.features import Needs
from stages.models.observer import Observer
from stages.models.settings import ModelSettings
from tests.errors import raises

MLPS = ["small_mixer", "small_resmlp"]


@pytest.mark.parametrize("name", MLPS)
@pytest.mark.parametrize(("size", "channels"), [(28, 1), (32, 3), (64, 3)])
def test_an_mlp_is_built_for_the_images_and_shows_its_grid(name: str, size: int, channels: int) -> None:
    model = create(ModelSettings(model=name), classes=7, channels=channels, image_size=size)
    features = Observer(model, Needs(ends=True))(torch.randn(2, channels, size, size))
    assert features.logits.shape == (2, 7)
    assert features.map.shape == (2, 96, size // 4, size // 4)
    assert {tuple(end.shape) for end in features.ends} == {(2, 96, size // 4, size // 4)}
    assert torch.allclose(features.map.mean((2, 3)), features.embedding, atol=1e-5)


@pytest.mark.parametrize("name", MLPS)
def test_options_change_width_depth_and_patch(name: str) -> None:
    options = {"embed_dim": 32, "num_blocks": 2, "patch_size": 7}
    model = create(ModelSettings(model=name, options=options), classes=4, channels=1, image_size=28)
    assert Observer(model)(torch.randn(1, 1, 28, 28)).map.shape == (1, 32, 4, 4)
    assert len(model.blocks) == 2  # type: ignore[arg-type]


def test_they_are_listed_and_have_no_pretrained_weights() -> None:
    assert set(MLPS) <= set(architecture_names())
    assert not any(timm.is_model_pretrained(name) for name in MLPS)
    with raises(ModelError, what="no pretrained weights"):
        create(ModelSettings(model="small_mixer", pretrained=True), classes=10, channels=3, image_size=32)
