"""Folds normalisations into the convolutions before them, as the exporter does.

A fine-tune that simulates an INT8 file has to round the weights that the file holds, and those are
the folded ones.
"""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn

from stages.models.recording import evaluation_mode

_CONVOLUTIONS = (nn.Conv2d, Conv2dSame)
"""Exactly these: a class that computes its weights anew in every pass (weight standardisation) cannot
take a normalisation into them."""

TOLERANCE = 1e-3
"""Largest difference between the logits before and after folding, as a share of their deviation."""


@dataclass(frozen=True)
class Folded:
    """network: the copy, in eval mode. count: normalisations folded into convolutions. left: paths of
    those that stay."""

    network: nn.Module
    count: int
    left: tuple[str, ...]


def folded(network: nn.Module, images: Tensor) -> Folded:
    """A copy of the network whose convolutions have taken in the normalisations that follow them.

    images: normalised float32 (n, channels, side, side), on the network's device; they show which
    normalisation is given exactly what which convolution leaves. Module paths stay: in the place of a
    normalisation stands an identity or, where it held its activation (timm's BatchNormAct2d), a
    sequence of that under its own name. The copy computes the same; if it does not (a convolution's
    result is read elsewhere too), nothing is folded.
    """
    original = copy.deepcopy(network).eval()
    norms = tuple(path for path, module in original.named_modules() if _foldable(module))
    changed = copy.deepcopy(original)
    pairs = _pairs(changed, images)
    for norm_path, conv_path in pairs.items():
        _fold(changed, norm_path, conv_path)
    with torch.no_grad():
        before, after = original(images), changed(images)
    if not bool((before - after).abs().max() <= TOLERANCE * before.std()):
        return Folded(original, 0, norms)
    return Folded(changed, len(pairs), tuple(path for path in norms if path not in pairs))


def _foldable(module: nn.Module) -> bool:
    return isinstance(module, nn.BatchNorm2d) and module.running_mean is not None


def _pairs(network: nn.Module, images: Tensor) -> dict[str, str]:
    """By the path of a normalisation, the path of the convolution whose very result it is given."""
    made_by: dict[int, str] = {}
    kept: list[Tensor] = []  # so that no two tensors share an id
    pairs: dict[str, str] = {}
    calls: Counter[str] = Counter()

    def leaves(path: str, result: Any) -> None:
        calls[path] += 1
        kept.append(result)
        made_by[id(result)] = path

    def takes(path: str, given: tuple[Any, ...]) -> None:
        calls[path] += 1
        if given and id(given[0]) in made_by:
            pairs[path] = made_by[id(given[0])]

    handles = [
        module.register_forward_hook(lambda _, __, result, path=path: leaves(path, result))
        for path, module in network.named_modules()
        if type(module) in _CONVOLUTIONS
    ]
    handles += [
        module.register_forward_pre_hook(lambda _, given, path=path: takes(path, given))
        for path, module in network.named_modules()
        if _foldable(module)
    ]
    try:
        with evaluation_mode(network), torch.no_grad():
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    users = Counter(pairs.values())
    return {
        norm: conv
        for norm, conv in pairs.items()
        if calls[norm] == 1 and calls[conv] == 1 and users[conv] == 1
    }


@torch.no_grad()
def _fold(network: nn.Module, norm_path: str, conv_path: str) -> None:
    """Gives the convolution the normalisation's gain and offset, in float64, and takes that out."""
    norm, conv = network.get_submodule(norm_path), network.get_submodule(conv_path)
    assert isinstance(norm, nn.BatchNorm2d)
    assert isinstance(conv, nn.Conv2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    gain = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        gain = gain * norm.weight.double()
    offset = -norm.running_mean.double() * gain
    if norm.bias is not None:
        offset = offset + norm.bias.double()
    if conv.bias is not None:
        offset = offset + conv.bias.double() * gain
    conv.weight.copy_(conv.weight.double() * gain[:, None, None, None])
    conv.bias = nn.Parameter(offset.to(conv.weight))
    parent, _, name = norm_path.rpartition(".")
    setattr(network.get_submodule(parent), name, _without_norm(norm))


def _without_norm(norm: nn.Module) -> nn.Module:
    """What is left of a normalisation without its arithmetic: what it holds, in the order it runs it."""
    held = OrderedDict((name, part) for name, part in norm.named_children())
    return nn.Sequential(held) if held else nn.Identity()
