"""The small stem: an architecture made for 224 pixels, fitted to images of 64 and below.

Such networks halve the map twice before their first real stage, which leaves nothing of a small
image. `small` leaves these first two halvings out, as He et al. (2016, section 4.2) did for CIFAR:
the map is four times larger on each side, everything after it is unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import BlurPool2d
from torch import nn

from pipeline.errors import ModelError

SMALL = 64
"""Side of the largest image that is called small, in pixels."""

LEFT_OUT = 4
"""By how much the total stride goes down."""

PROBE_SIZES = (64, 224, 299)
"""Sides of the probe image, the first that the network takes; none depends on the profile's
image_size, so that the same card always gives the same network."""

POOLS = (nn.MaxPool2d, nn.AvgPool2d, BlurPool2d)


@dataclass(frozen=True)
class Halving:
    """A layer that makes the map smaller: `level` is the stride gone through before it."""

    name: str
    layer: nn.Module
    level: float
    stride: int
    output: int


def small_stem(model: nn.Module, name: str, channels: int) -> None:
    """Leaves out the first two halvings of the map, in place.

    Strided layers that read the map before it has shrunk by 4 get stride 1, parallel branches
    alike; pools among them become the identity; a kernel of 7x7, or an even one, becomes 3x3 with
    fresh weights (Kaiming normal, fan out, drawn from torch's current generator: a norm follows
    every such layer, so that its scale does not matter).

    Raises ModelError if the architecture has no such stem (vision transformers, networks built for
    one image size, networks that halve the map fewer than two times), or needs none (those made for
    small images).
    """
    if _made_for(model) <= SMALL:
        raise _no_small_stem(name, f"it is made for images of {_made_for(model)} pixels as it is")
    if hasattr(model, "patch_embed") or _takes_one_size(model):
        raise _no_small_stem(name, "it cuts the image into patches, or is built for one image size")
    size, before = _halvings(model, name, channels)
    # 0.75: with "valid" convolutions a level is a little above the power of two it stands for.
    stem = [halving for halving in before if halving.level < LEFT_OUT * 0.75]
    reached = 1
    for level in sorted({round(halving.level) for halving in stem}):
        reached = level * max(halving.stride for halving in stem if round(halving.level) == level)
    if reached != LEFT_OUT:
        raise _no_small_stem(name, f"its first strided layers divide the map by {reached}, not by {LEFT_OUT}")
    for halving in stem:
        _without_stride(model, halving)
    _verify(model, name, channels, size, before)


def _halvings(model: nn.Module, name: str, channels: int) -> tuple[int, list[Halving]]:
    reason = ""
    for size in PROBE_SIZES:
        try:
            return size, _probe(model, channels, size)
        except (RuntimeError, ValueError, AssertionError) as error:
            reason = (str(error).splitlines() or [""])[0]
    raise _no_small_stem(name, f"it takes no image of {PROBE_SIZES} pixels ({reason})")


def _probe(model: nn.Module, channels: int, size: int) -> list[Halving]:
    """Every layer that shrinks the map, in the order in which one image goes through them."""
    found: list[Halving] = []

    def watch(path: str, stride: int) -> Any:
        def seen(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            found.append(Halving(path, layer, size / inputs[0].shape[-1], stride, output.shape[-1]))

        return seen

    hooks = [
        layer.register_forward_hook(watch(path, _stride(layer)))
        for path, layer in model.named_modules()
        if isinstance(layer, (nn.Conv2d, *POOLS)) and _stride(layer) > 1
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
    return found


def _without_stride(model: nn.Module, halving: Halving) -> None:
    layer = halving.layer
    if isinstance(layer, POOLS):
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
        found = after.get(halving.name)
        # "Valid" convolutions lose a border, more of it in a larger map.
        exact = halving.output * halving.stride * halving.level == size
        slack = 0 if exact else 2 * LEFT_OUT
        if found is not None and abs(found - LEFT_OUT * halving.output) > slack:
            raise _no_small_stem(
                name, f"its map grew from {halving.output} to {found} where {LEFT_OUT} times were expected"
            )


def _stride(layer: nn.Module) -> int:
    stride = getattr(layer, "stride", 1)
    return int(max(stride)) if isinstance(stride, tuple | list) else int(stride or 1)


def _takes_one_size(model: nn.Module) -> bool:
    return bool(_facts(model).get("fixed_input_size", False))


def _made_for(model: nn.Module) -> int:
    """Side of the images the architecture is made for, in pixels; 224 where it does not tell."""
    return int(_facts(model).get("input_size", (3, 224, 224))[-1])


def _facts(model: nn.Module) -> dict[str, Any]:
    return getattr(model, "default_cfg", None) or getattr(model, "pretrained_cfg", None) or {}


def _no_small_stem(name: str, why: str) -> ModelError:
    return ModelError(
        f"{name} has no small stem",
        why=why,
        hint="set `stem: standard`; for small images give a vision transformer smaller patches "
        "(`options: {patch_size: 4}`), or raise data.image_size",
    )
