"""Residual networks for 32 pixels.

He et al., "Deep Residual Learning for Image Recognition" (2016), section 4.2: depth 6n + 2, a 3x3
stem, three stages of n basic blocks; the second and the third stage halve the map at their start. The
shortcut of a block that changes the shape is a 1x1 convolution with a norm (their option B, used in the
codes of CRD and its successors) or has no parameters (their option A).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional

from stages.models.cifar.staged import CifarNet, Stage, initialise

NARROW = (16, 16, 32, 64)
"""Channels of the stem and of the three stages."""

WIDE = (32, 64, 128, 256)
"""Channels of the `x4` networks: four times as many in the stages, twice as many in the stem."""

BOTTLENECK_EXPANSION = 4
"""The factor from a bottleneck's inner channels to its output channels."""


class PaddedShortcut(nn.Module):
    """A shortcut without parameters: every stride-th pixel, and additional channels of zeros.

    Half of the additional channels come before the input's channels, half after.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        added = outputs - inputs
        self.padding = (0, 0, 0, 0, added // 2, added - added // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, ceil(H / stride), ceil(W / stride))."""
        return functional.pad(x[:, :, :: self.stride, :: self.stride], self.padding)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, each with a norm, parallel to the shortcut; ReLU after the sum."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = _shortcut(inputs, outputs, stride, shortcut)
        self.act2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, ceil(H / stride), ceil(W / stride))."""
        inner = self.act1(self.bn1(self.conv1(x)))
        output: Tensor = self.act2(self.bn2(self.conv2(inner)) + self.downsample(x))
        return output


class Bottleneck(nn.Module):
    """1x1 reduction, 3x3 with the stride, 1x1 expansion to four times the width, parallel to the shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * BOTTLENECK_EXPANSION
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.act2 = nn.ReLU()
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = _shortcut(inputs, outputs, stride, "conv")
        self.act3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, 4 * width, ceil(H / stride), ceil(W / stride))."""
        inner = self.act1(self.bn1(self.conv1(x)))
        inner = self.act2(self.bn2(self.conv2(inner)))
        output: Tensor = self.act3(self.bn3(self.conv3(inner)) + self.downsample(x))
        return output


def resnet(
    depth: int,
    widths: tuple[int, int, int, int],
    /,
    *,
    num_classes: int,
    in_chans: int = 3,
    shortcut: str = "conv",
    global_pool: str = "avg",
) -> CifarNet:
    """Build a network of basic blocks.

    Args:
        depth: 6n + 2 layers.
        widths: Channels of the stem and of the three stages.
        num_classes: The number of classes.
        in_chans: Channels of the images.
        shortcut: `conv`, or `pad` for the shortcut without parameters.
        global_pool: timm's name of the pooling.

    Raises:
        ValueError: `shortcut` has another value.
    """
    if shortcut not in ("conv", "pad"):
        raise ValueError(f"shortcut is conv or pad, not {shortcut!r}")
    block = partial(BasicBlock, shortcut=shortcut)
    return _residual(
        block, [(depth - 2) // 6] * 3, widths[0], list(widths[1:]), 1, num_classes, in_chans, global_pool
    )


def resnet50(*, num_classes: int, in_chans: int = 3, global_pool: str = "avg") -> CifarNet:
    """Build He et al.'s ResNet-50 (table 1) with a 3x3 stem of stride 1 and without the first pooling."""
    widths = [64, 128, 256, 512]
    return _residual(
        Bottleneck, [3, 4, 6, 3], 64, widths, BOTTLENECK_EXPANSION, num_classes, in_chans, global_pool
    )


def _residual(
    block: Callable[[int, int, int], nn.Module],
    counts: list[int],
    stem: int,
    widths: list[int],
    expansion: int,
    num_classes: int,
    in_chans: int,
    global_pool: str,
) -> CifarNet:
    parts: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(in_chans, stem, 3, 1, 1, bias=False),
        "bn1": nn.BatchNorm2d(stem),
        "act1": nn.ReLU(),
    }
    stages = [Stage(("conv1", "bn1", "act1"), stem, 1)]
    inputs = stem
    for number, (count, width) in enumerate(zip(counts, widths, strict=True)):
        blocks: list[nn.Module] = []
        for position in range(count):
            blocks.append(block(inputs, width, 2 if number and not position else 1))
            inputs = width * expansion
        name = f"layer{number + 1}"
        parts[name] = nn.Sequential(*blocks)
        stages.append(Stage((name,), inputs, 2**number))
    return initialise(
        CifarNet(parts, stages, features=inputs, num_classes=num_classes, global_pool=global_pool)
    )


def _shortcut(inputs: int, outputs: int, stride: int, kind: str) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    if kind == "pad":
        return PaddedShortcut(inputs, outputs, stride)
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
