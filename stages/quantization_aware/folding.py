"""Folds normalisations into the convolutions before them, like the exporter.

A fine-tune that simulates an INT8 file has to round the weights that the file contains, and those are
the folded weights.
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
"""Largest difference between the logits before and after folding, as a share of their standard deviation."""


@dataclass(frozen=True)
class FoldedNetwork:
    """A network whose normalisations are folded into its convolutions.

    Attributes:
        network: The copy, in eval mode.
        count: Number of normalisations that were folded.
        unfolded: Paths of the normalisations that were not.
    """

    network: nn.Module
    count: int
    unfolded: tuple[str, ...]


def fold_normalisations(network: nn.Module, images: Tensor) -> FoldedNetwork:
    """Return a copy of the network with the normalisations folded into the convolutions before them.

    Module paths stay the same. A folded normalisation becomes an identity or, if it contained its activation
    (timm's BatchNormAct2d), a sequence of that activation under its own name. The copy computes the same as
    the network; if it does not (a convolution's result has another reader), nothing is folded.

    Args:
        network: The network; it stays as it is.
        images: Normalised float32 (n, channels, side, side), on the network's device. One pass shows which
            normalisation reads exactly the result of which convolution.
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
        return FoldedNetwork(original, 0, norms)
    return FoldedNetwork(changed, len(pairs), tuple(path for path in norms if path not in pairs))


def _foldable(module: nn.Module) -> bool:
    return isinstance(module, nn.BatchNorm2d) and module.running_mean is not None


def _pairs(network: nn.Module, images: Tensor) -> dict[str, str]:
    """Return, by the path of a normalisation, the path of the convolution whose very result it reads."""
    producers: dict[int, str] = {}
    results: list[Tensor] = []  # keeps them alive, so that no two tensors share an id
    pairs: dict[str, str] = {}
    calls: Counter[str] = Counter()

    def note_result(path: str, result: Any) -> None:
        calls[path] += 1
        results.append(result)
        producers[id(result)] = path

    def note_input(path: str, inputs: tuple[Any, ...]) -> None:
        calls[path] += 1
        if inputs and id(inputs[0]) in producers:
            pairs[path] = producers[id(inputs[0])]

    handles = [
        module.register_forward_hook(lambda _, __, result, path=path: note_result(path, result))
        for path, module in network.named_modules()
        if type(module) in _CONVOLUTIONS
    ]
    handles += [
        module.register_forward_pre_hook(lambda _, inputs, path=path: note_input(path, inputs))
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
    """Move the normalisation's gain and offset into the convolution, in float64."""
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
    """Return the modules inside a normalisation, in the order in which it runs them."""
    parts = OrderedDict((name, part) for name, part in norm.named_children())
    return nn.Sequential(parts) if parts else nn.Identity()
