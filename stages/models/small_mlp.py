"""Token-mixing MLPs for small images, in timm's registry: importing this module puts them there.

timm has MLP-Mixer and ResMLP for 224 pixels with patches of 16 and 32, fixed by their names. These
are its own classes with patches of 4 pixels and a width to match, for images of 28 to 64 pixels.
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
"""By timm's name, what its constructor is given; the profile's `options` come on top."""

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
"""What timm tells of each; it looks for this name in the module of the entry point."""


def _entry(name: str, given: dict[str, Any]) -> Callable[..., MlpMixer]:
    def entry(pretrained: bool = False, **options: Any) -> MlpMixer:
        facts = {"patch_size": PATCH, **given, **options}
        model: MlpMixer = build_model_with_cfg(MlpMixer, name, pretrained, **facts)
        return model

    entry.__name__ = entry.__qualname__ = name
    return entry


for _name, _given in NETWORKS.items():
    register_model(_entry(_name, _given))
