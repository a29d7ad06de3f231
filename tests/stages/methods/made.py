"""Features and specs of made-up maps, for the tests of the losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from stages.methods.base import Batch
from stages.methods.msdcrd import Msdcrd
from stages.methods.parts.contrast_layer import ContrastLayer
from stages.methods.settings import MsdcrdSettings
from stages.models.features import Change, Features, FeatureSpec

CLASSES = 5


def settings(**keys: Any) -> MsdcrdSettings:
    return MsdcrdSettings(name="msdcrd", **keys)


@dataclass(frozen=True)
class MadeHead:
    """A network that consists of its head."""

    local_logits: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class MadeTeacher:
    """A teacher that consists of its head; `shown` is what it shows when it is run again."""

    local_logits: Callable[[Tensor], Tensor]
    shown: Features | None = None

    def rerun_with_changed_maps(self, changes: Mapping[int, Change]) -> Features:
        assert self.shown is not None
        ends: list[Tensor] = []
        shift: Tensor | float = 0.0
        for n, end in enumerate(self.shown.ends):
            came = end + shift
            ends.append(changes[n](came) if n in changes else came)
            # What changes a map changes all behind it.
            shift = shift + (ends[-1] - came).mean((1, 2, 3), keepdim=True)
        pooled = ends[-1].mean((2, 3))
        return Features(self.local_logits(pooled), pooled, ends[-1], ends=tuple(ends))


def batch(labels: Tensor, head: Callable[[Tensor], Tensor] | None = None, **keys: Any) -> Batch:
    """A step about images 0, 1, ... of the training set, with a teacher of this classifier; the
    student's is the one that `features` uses.

    keys: `indices`; `student`: its head; `shown`: the features of a teacher that is run again."""
    indices = keys.pop("indices", torch.arange(len(labels), device=labels.device))
    student = keys.pop("student", MadeHead(of_features))
    return Batch(labels, indices, MadeTeacher(head or (lambda vectors: vectors), **keys), student)


def features(
    maps: Tensor,
    *stages: Tensor,
    numbers: tuple[int, ...] = (),
    seed: int = 5,
    ends: tuple[Tensor, ...] = (),
) -> Features:
    """Features with this final map; the logits are a fixed linear layer on its mean. What is before
    the activations is the maps themselves, less 0.5."""
    pooled = maps.mean((2, 3))
    return Features(
        head(maps.shape[1], seed).to(maps.device)(pooled),
        pooled,
        maps,
        stages,
        numbers,
        ends,
        maps - 0.5,
        tuple(end - 0.5 for end in ends),
    )


def of_features(vectors: Tensor) -> Tensor:
    """The classifier that `features` uses by default, whatever the channels."""
    return head(vectors.shape[-1]).to(vectors.device)(vectors)


def head(channels: int, seed: int = 5) -> torch.nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.nn.Linear(channels, CLASSES).requires_grad_(False)


def of_ends(sizes: Sequence[tuple[int, int, int]], images: int, seed: int) -> Features:
    """Features whose stage ends are (C, H, W) each, the last that of the map as well."""
    ends = tuple(maps(images, *size, seed=seed + n) for n, size in enumerate(sizes))
    return features(ends[-1], ends=ends, seed=seed)


def spec(seen: Features) -> FeatureSpec:
    shapes = [(maps.shape[1], maps.shape[2], maps.shape[3]) for maps in (seen.map, *seen.stages, *seen.ends)]
    count = 1 + len(seen.stages)
    return FeatureSpec(
        classes=seen.logits.shape[1],
        embedding=seen.embedding.shape[1],
        map=shapes[0],
        stages=tuple(shapes[1:count]),
        head_is_linear_on_pooled=True,
        stage_numbers=seen.stage_numbers,
        ends=tuple(shapes[count:]),
    )


def maps(images: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images, channels, height, width, generator=generator)


def labels(images: int, seed: int = 0) -> Tensor:
    return torch.randint(0, CLASSES, (images,), generator=torch.Generator().manual_seed(seed))


def method(student: Features, teacher: Features, **keys: Any) -> Msdcrd:
    torch.manual_seed(1)
    return Msdcrd(spec(student), spec(teacher), **keys)


def layers(method: Msdcrd) -> list[ContrastLayer]:
    return [cast(ContrastLayer, layer) for layer in method.layers]
