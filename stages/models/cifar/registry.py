"""The CIFAR networks; importing this module adds them to timm's registry."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from timm.models import build_model_with_cfg, register_model

from stages.models.cifar.mobilenetv2 import mobilenetv2_half
from stages.models.cifar.resnet import NARROW, WIDE, resnet, resnet50
from stages.models.cifar.shufflenet import shufflenetv1, shufflenetv2
from stages.models.cifar.staged import CifarNet
from stages.models.cifar.vgg import vgg
from stages.models.cifar.wide_resnet import wide_resnet

NETWORKS: dict[str, Callable[..., CifarNet]] = {
    "cifar_resnet8": partial(resnet, 8, NARROW),
    "cifar_resnet14": partial(resnet, 14, NARROW),
    "cifar_resnet20": partial(resnet, 20, NARROW),
    "cifar_resnet32": partial(resnet, 32, NARROW),
    "cifar_resnet44": partial(resnet, 44, NARROW),
    "cifar_resnet56": partial(resnet, 56, NARROW),
    "cifar_resnet110": partial(resnet, 110, NARROW),
    "cifar_resnet8x4": partial(resnet, 8, WIDE),
    "cifar_resnet32x4": partial(resnet, 32, WIDE),
    "cifar_resnet50": resnet50,
    "cifar_wrn_16_2": partial(wide_resnet, 16, 2),
    "cifar_wrn_40_1": partial(wide_resnet, 40, 1),
    "cifar_wrn_40_2": partial(wide_resnet, 40, 2),
    "cifar_vgg8": partial(vgg, 1),
    "cifar_vgg13": partial(vgg, 2),
    "cifar_mobilenetv2_half": mobilenetv2_half,
    "cifar_shufflenetv1": shufflenetv1,
    "cifar_shufflenetv2": shufflenetv2,
}
"""The constructors by timm's name."""

default_cfgs: dict[str, dict[str, Any]] = {
    name: {
        "url": "",
        "num_classes": 100,
        "input_size": (3, 32, 32),
        "pool_size": None,
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": (0.5071, 0.4867, 0.4408),
        "std": (0.2675, 0.2565, 0.2761),
        "classifier": "fc",
    }
    for name in NETWORKS
}
"""timm's facts about each network; timm expects this name in the entry point's module."""


def _register(name: str, build: Callable[..., CifarNet]) -> None:
    def entry(pretrained: bool = False, **options: Any) -> CifarNet:
        model: CifarNet = build_model_with_cfg(build, name, pretrained, **options)
        return model

    entry.__name__ = entry.__qualname__ = name
    register_model(entry)


for _name, _build in NETWORKS.items():
    _register(_name, _build)
