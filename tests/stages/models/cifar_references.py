"""Second implementations of the CIFAR networks' passes, from the papers.

They use a network's weights, but not its code. Images are (B, C, H, W), float64; the networks are in
evaluation mode.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

State = dict[str, Tensor]


def _norm(x: Tensor, state: State, name: str) -> Tensor:
    mean, variance, gain, offset = (
        state[f"{name}.{part}"][None, :, None, None]
        for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (variance + 1e-5).sqrt() * gain + offset


def _conv(x: Tensor, state: State, name: str, stride: int = 1, groups: int = 1) -> Tensor:
    weight = state[f"{name}.weight"]
    return functional.conv2d(x, weight, None, stride, weight.shape[-1] // 2, groups=groups)


def _head(x: Tensor, state: State) -> Tensor:
    return x.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]


def wide_resnet(state: State, images: Tensor, blocks: int) -> Tensor:
    """Compute the logits by Zagoruyko and Komodakis, figure 1 and table 1: pre-activation blocks."""
    x = _conv(images, state, "conv1")
    for stage in (1, 2, 3):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            activated = _norm(x, state, f"{name}.bn1").clamp(min=0)
            inner = _norm(_conv(activated, state, f"{name}.conv1", stride), state, f"{name}.bn2").clamp(min=0)
            inner = _conv(inner, state, f"{name}.conv2")
            if f"{name}.downsample.weight" in state:
                x = _conv(activated, state, f"{name}.downsample", stride)
            x = x + inner
    return _head(_norm(x, state, "bn").clamp(min=0), state)


def shufflenetv1(state: State, images: Tensor) -> Tensor:
    """Compute the logits by Zhang et al., figure 2b and 2c, with a ReLU after the depthwise convolution."""
    x = _conv_norm(images, state, "stem").clamp(min=0)
    for stage, count in ((1, 4), (2, 8), (3, 4)):
        for block in range(count):
            name, first = f"layer{stage}.{block}", block == 0
            groups = 1 if stage == 1 and first else 3
            inner = _conv_norm(x, state, f"{name}.reduce", groups=groups).clamp(min=0)
            inner = _shuffled(inner, groups)
            width = inner.shape[1]
            inner = _conv_norm(inner, state, f"{name}.depthwise", 2 if first else 1, width).clamp(min=0)
            inner = _conv_norm(inner, state, f"{name}.expand", groups=3)
            if first:
                x = torch.cat([inner, functional.avg_pool2d(x, 3, 2, 1)], 1).clamp(min=0)
            else:
                x = (inner + x).clamp(min=0)
    return _head(x, state)


def _conv_norm(x: Tensor, state: State, name: str, stride: int = 1, groups: int = 1) -> Tensor:
    return _norm(_conv(x, state, f"{name}.0", stride, groups), state, f"{name}.1")


def _shuffled(x: Tensor, groups: int) -> Tensor:
    """Reorder the channels: the first of each group, then the second of each group."""
    size = x.shape[1] // groups
    return torch.stack([x[:, group * size + i] for i in range(size) for group in range(groups)], 1)


def torchvision_twin(name: str) -> nn.Module:
    """Return torchvision's network of the same paper, adapted to CIFAR; 100 classes."""
    if name == "cifar_resnet50":
        resnet = torchvision.models.resnet50(num_classes=100)
        resnet.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        resnet.maxpool = nn.Identity()
        return resnet
    if name == "cifar_shufflenetv2":
        shuffle = torchvision.models.shufflenet_v2_x1_0(num_classes=100)
        shuffle.conv1[0] = nn.Conv2d(3, 24, 1, bias=False)
        shuffle.maxpool = nn.Identity()
        return shuffle
    if name == "cifar_mobilenetv2_half":
        rows = [[1, 16, 1, 1], [6, 24, 2, 1], [6, 32, 3, 2], [6, 64, 4, 2], [6, 96, 3, 1]]
        rows += [[6, 160, 3, 2], [6, 320, 1, 1]]
        mobile = torchvision.models.MobileNetV2(100, 0.5, rows, round_nearest=1, dropout=0.0)
        for path, layer in list(mobile.named_modules()):
            if isinstance(layer, nn.ReLU6):
                parent, _, child = path.rpartition(".")
                setattr(mobile.get_submodule(parent), child, nn.ReLU())
        return mobile
    rows_of = {
        "cifar_vgg8": [64, "M", 128, "M", 256, "M", 512, 512],
        "cifar_vgg13": [64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, 512, 512],
    }
    layers = torchvision.models.vgg.make_layers(rows_of[name], batch_norm=True)
    return nn.Sequential(layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 100))


def parameter_counts() -> Iterator[tuple[str, int]]:
    """Count each network's parameters by the papers' tables, for 100 classes and colour images."""
    for depth in (8, 14, 20, 32, 44, 56, 110):
        yield f"cifar_resnet{depth}", _resnet(depth, 16, 16)
    yield "cifar_resnet8x4", _resnet(8, 32, 64)
    yield "cifar_resnet32x4", _resnet(32, 32, 64)
    for depth, factor in ((16, 2), (40, 1), (40, 2)):
        yield f"cifar_wrn_{depth}_{factor}", _wrn(depth, factor)
    for name, each in (("cifar_vgg8", 1), ("cifar_vgg13", 2)):
        pairs = []
        before = 3
        for width in (64, 128, 256, 512, 512):
            pairs += [(before, width)] + [(width, width)] * (each - 1)
            before = width
        yield name, sum(9 * i * o + 3 * o for i, o in pairs) + 512 * 100 + 100


def _resnet(depth: int, stem: int, width: int) -> int:
    total, before = 27 * stem + 2 * stem, stem
    for own in (width, 2 * width, 4 * width):
        blocks = (depth - 2) // 6
        total += 9 * before * own + (2 * blocks - 1) * 9 * own * own + 2 * blocks * 2 * own
        total += 0 if before == own else before * own + 2 * own
        before = own
    return total + before * 100 + 100


def _wrn(depth: int, factor: int) -> int:
    total, before = 27 * 16, 16
    for own in (16 * factor, 32 * factor, 64 * factor):
        blocks = (depth - 4) // 6
        total += 9 * before * own + (2 * blocks - 1) * 9 * own * own
        total += 2 * before + (2 * blocks - 1) * 2 * own
        total += 0 if before == own else before * own
        before = own
    return total + 2 * before + before * 100 + 100
