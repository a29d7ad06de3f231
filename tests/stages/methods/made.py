"""Features and specs of made-up maps, for the tests of the losses."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from stages.methods.msdcrd import ContrastLayer, Msdcrd
from stages.methods.settings import MsdcrdSettings
from stages.models.features import Features, FeatureSpec

CLASSES = 5


def settings(**keys: Any) -> MsdcrdSettings:
    return MsdcrdSettings(name="msdcrd", **keys)


def features(maps: Tensor, *stages: Tensor, numbers: tuple[int, ...] = (), seed: int = 5) -> Features:
    """Features with this final map; the logits are a fixed linear layer on its mean."""
    pooled = maps.mean((2, 3))
    return Features(head(maps.shape[1], seed)(pooled), pooled, maps, stages, numbers)


def head(channels: int, seed: int = 5) -> torch.nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.nn.Linear(channels, CLASSES).requires_grad_(False)


def spec(seen: Features) -> FeatureSpec:
    shapes = [(maps.shape[1], maps.shape[2], maps.shape[3]) for maps in (seen.map, *seen.stages)]
    return FeatureSpec(
        classes=seen.logits.shape[1],
        embedding=seen.embedding.shape[1],
        map=shapes[0],
        stages=tuple(shapes[1:]),
        head_is_linear_on_pooled=True,
        stage_numbers=seen.stage_numbers,
    )


def maps(images: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images, channels, height, width, generator=generator)


def labels(images: int, seed: int = 0) -> Tensor:
    return torch.randint(0, CLASSES, (images,), generator=torch.Generator().manual_seed(seed))


def method(student: Features, teacher: Features, **keys: Any) -> Msdcrd:
    torch.manual_seed(1)
    return Msdcrd(settings(**keys), spec(student), spec(teacher))


def layers(method: Msdcrd) -> list[ContrastLayer]:
    return [cast(ContrastLayer, layer) for layer in method.layers]
