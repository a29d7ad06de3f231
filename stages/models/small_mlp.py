"""Token-mixing MLPs for small images; importing this module adds them to timm's registry.

timm's MLP-Mixer and ResMLP are for 224 pixels, with patches of 16 and 32 pixels. These networks
use timm's classes with patches of 4 pixels and a smaller width, for images of 28 to 64 pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from timm.models import build_model_with_cfg, register_model
from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock

PATCH = 4
"""Pixels along a patch's side."""

NETWORKS: dict[str, dict[str, Any]] = {
    # Tolstikhin et al., "MLP-Mixer" (2021), Touvron et al., "ResMLP" (2021).
    "small_mixer": {"embed_dim": 96, "num_blocks": 4},
    "small_resmlp": {
        "embed_dim": 96,
        "num_blocks": 6,
        "mlp_ratio": 4,
        "block_layer": partial(ResBlock, init_values=1e-1),
        "norm_layer": Affine,
    },
}
"""The constructor's arguments by timm's name; the profile's `options` override them."""

default_cfgs: dict[str, dict[str, Any]] = {
    name: {
        "url": "",
        "num_classes": 10,
        "input_size": (3, 32, 32),
        "fixed_input_size": True,
        "pool_size": None,
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "first_conv": "stem.proj",
        "classifier": "head",
    }
    for name in NETWORKS
}
"""timm's facts about each network; timm expects this name in the entry point's module."""


def _entry(name: str, arguments: dict[str, Any]) -> Callable[..., MlpMixer]:
    def entry(pretrained: bool = False, **options: Any) -> MlpMixer:
        facts = {"patch_size": PATCH, **arguments, **options}
        model: MlpMixer = build_model_with_cfg(MlpMixer, name, pretrained, **facts)
        return model

    entry.__name__ = entry.__qualname__ = name
    return entry


for _name, _arguments in NETWORKS.items():
    register_model(_entry(_name, _arguments))
