"""The small stem: an architecture for 224 pixels, adapted to images of up to 64 pixels.

Such networks halve the map twice before their first stage, so a small image has no map left at the end.
`small` removes these first two halvings, like He et al. (2016, section 4.2) for CIFAR: the map is four times
larger on each side; the layers after it do not change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import BlurPool2d
from torch import nn

from pipeline.errors import ModelError

SMALL_IMAGE_SIZE = 64
"""Side of the largest image that counts as small, pixels."""

STRIDE_REDUCTION = 4
"""The factor by which the total stride decreases."""

PROBE_SIZES = (64, 224, 299)
"""Sides of the probe image; the first that the network accepts is used.

They do not depend on the profile's image_size, so that equal cards give equal networks.
"""

POOLING_LAYERS = (nn.MaxPool2d, nn.AvgPool2d, BlurPool2d)


@dataclass(frozen=True)
class Halving:
    """A layer that reduces the map.

    Attributes:
        name: The layer's path in the network.
        layer: The layer.
        level: The total stride before it.
        stride: Its stride.
        output: Width of its output for the probe image, pixels.
    """

    name: str
    layer: nn.Module
    level: float
    stride: int
    output: int


def small_stem(model: nn.Module, name: str, channels: int) -> None:
    """Remove the first two halvings of the map, in place.

    Strided layers whose input is less than 4 times smaller than the image get stride 1, also in parallel
    branches; pooling layers among them become the identity. A kernel of 7x7, or of even size, becomes 3x3
    with new weights (Kaiming normal, fan out, from torch's current generator; a norm follows
    every such layer, so the scale of the weights does not matter).

    Args:
        model: The network.
        name: Its name, for the error message.
        channels: Channels of the images.

    Raises:
        ModelError: The architecture has no such stem (vision transformers, networks with a fixed
            image size, networks that halve the map fewer than two times), or is made for small images.
    """
    if _native_image_size(model) <= SMALL_IMAGE_SIZE:
        raise _no_small_stem(name, f"it is already made for images of {_native_image_size(model)} pixels")
    if hasattr(model, "patch_embed") or _has_fixed_size(model):
        raise _no_small_stem(name, "it cuts the image into patches, or has a fixed image size")
    size, before = _halvings(model, name, channels)
    # 0.75: with "valid" convolutions a level is a little above its power of two.
    stem = [halving for halving in before if halving.level < STRIDE_REDUCTION * 0.75]
    stem_stride = 1
    for level in sorted({round(halving.level) for halving in stem}):
        stem_stride = level * max(halving.stride for halving in stem if round(halving.level) == level)
    if stem_stride != STRIDE_REDUCTION:
        raise _no_small_stem(
            name, f"its first strided layers divide the map by {stem_stride}, not by {STRIDE_REDUCTION}"
        )
    for halving in stem:
        _remove_stride(model, halving)
    _verify(model, name, channels, size, before)


def _halvings(model: nn.Module, name: str, channels: int) -> tuple[int, list[Halving]]:
    reason = ""
    for size in PROBE_SIZES:
        try:
            return size, _probe(model, channels, size)
        except (RuntimeError, ValueError, AssertionError) as error:
            reason = (str(error).splitlines() or [""])[0]
    raise _no_small_stem(name, f"it does not accept images of {PROBE_SIZES} pixels ({reason})")


def _probe(model: nn.Module, channels: int, size: int) -> list[Halving]:
    """Return the layers that reduce the map, in the order of a pass."""
    halvings: list[Halving] = []

    def record(path: str, stride: int) -> Any:
        def hook(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            halvings.append(Halving(path, layer, size / inputs[0].shape[-1], stride, output.shape[-1]))

        return hook

    hooks = [
        layer.register_forward_hook(record(path, _stride(layer)))
        for path, layer in model.named_modules()
        if isinstance(layer, (nn.Conv2d, *POOLING_LAYERS)) and _stride(layer) > 1
    ]
    modes = {module: module.training for module in model.modules()}
    device = next(model.parameters()).device
    try:
        model.eval()
        with torch.no_grad():
            model(torch.zeros(1, channels, size, size, device=device))
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    return halvings


def _remove_stride(model: nn.Module, halving: Halving) -> None:
    layer = halving.layer
    if isinstance(layer, POOLING_LAYERS):
        parent, _, child = halving.name.rpartition(".")
        setattr(model.get_submodule(parent), child, nn.Identity())
        return
    assert isinstance(layer, nn.Conv2d)
    layer.stride = (1, 1)
    kernel = max(layer.kernel_size)
    if kernel < 7 and kernel % 2:
        return
    weight = layer.weight
    layer.kernel_size = (3, 3)
    if not isinstance(layer.padding, str):
        layer.padding = (1, 1)
        layer._reversed_padding_repeated_twice = [1, 1, 1, 1]
    layer.weight = nn.Parameter(weight.new_empty(*weight.shape[:2], 3, 3))
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _verify(model: nn.Module, name: str, channels: int, size: int, before: list[Halving]) -> None:
    try:
        after = {halving.name: halving.output for halving in _probe(model, channels, size)}
    except (RuntimeError, ValueError, AssertionError) as error:
        raise _no_small_stem(name, (str(error).splitlines() or [""])[0]) from error
    for halving in before:
        output = after.get(halving.name)
        # "Valid" convolutions remove a border, and a wider one from a larger map.
        exact = halving.output * halving.stride * halving.level == size
        slack = 0 if exact else 2 * STRIDE_REDUCTION
        if output is not None and abs(output - STRIDE_REDUCTION * halving.output) > slack:
            raise _no_small_stem(
                name,
                f"its map grew from {halving.output} to {output} pixels, not by {STRIDE_REDUCTION} times",
            )


def _stride(layer: nn.Module) -> int:
    stride = getattr(layer, "stride", 1)
    return int(max(stride)) if isinstance(stride, tuple | list) else int(stride or 1)


def _has_fixed_size(model: nn.Module) -> bool:
    return bool(_facts(model).get("fixed_input_size", False))


def _native_image_size(model: nn.Module) -> int:
    """Return the side of the images that the architecture is made for, pixels; 224 if unknown."""
    return int(_facts(model).get("input_size", (3, 224, 224))[-1])


def _facts(model: nn.Module) -> dict[str, Any]:
    return getattr(model, "default_cfg", None) or getattr(model, "pretrained_cfg", None) or {}


def _no_small_stem(name: str, why: str) -> ModelError:
    return ModelError(
        f"{name} has no small stem",
        why=why,
        hint="set `stem: standard`; for small images set smaller patches for a vision transformer "
        "(`options: {patch_size: 4}`), or raise data.image_size",
    )
