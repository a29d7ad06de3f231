"""ShuffleNet and ShuffleNetV2 for 32 pixels.

Zhang et al., "ShuffleNet" (2018), table 1 with three groups, and Ma et al., "ShuffleNet V2" (2018),
table 5 at 1x, in the form of papers on distillation: a 1x1 stem of 24 channels with stride 1 and no
first pooling, so the final map is 4x4. These papers' ShuffleNet also has a ReLU after the depthwise
convolution; that of Zhang et al. does not. The weights have PyTorch's default initialisation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from stages.models.cifar.staged import ChannelShuffle, CifarNet, Stage, conv_norm

STEM = 24
"""Channels of the stem."""

BLOCKS = (4, 8, 4)
"""Blocks of each stage; the first of them halves the map."""

GROUPS = 3
"""Groups of ShuffleNet's 1x1 convolutions."""

WIDTHS = (240, 480, 960)
"""Channels of ShuffleNet's stages."""

WIDTHS_V2 = (116, 232, 464)
"""Channels of ShuffleNetV2's stages."""

LAST_V2 = 1024
"""Channels of ShuffleNetV2's last 1x1 convolution."""


class GroupedBottleneck(nn.Module):
    """Grouped 1x1 to a quarter of the width, shuffle, depthwise 3x3, grouped 1x1.

    The input is added; if the block halves the map, the pooled input is appended instead. ReLU at the end.
    """

    def __init__(self, inputs: int, outputs: int, *, halving: bool, first_groups: int) -> None:
        super().__init__()
        own = outputs - inputs if halving else outputs
        inner = own // 4
        self.reduce = conv_norm(inputs, inner, 1, groups=first_groups)
        self.shuffle = ChannelShuffle(first_groups)
        self.depthwise = conv_norm(inner, inner, 3, stride=2 if halving else 1, groups=inner)
        self.expand = conv_norm(inner, own, 1, groups=GROUPS, act=False)
        self.pool = nn.AvgPool2d(3, 2, 1) if halving else None
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H, W), or half of H and W."""
        inner = self.expand(self.depthwise(self.shuffle(self.reduce(x))))
        joined = inner + x if self.pool is None else torch.cat([inner, self.pool(x)], dim=1)
        output: Tensor = self.act(joined)
        return output


class SplitBlock(nn.Module):
    """Half of the channels stay unchanged; the other half goes through 1x1, depthwise 3x3, 1x1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            conv_norm(half, half, 1),
            conv_norm(half, half, 3, groups=half, act=False),
            conv_norm(half, half, 1),
        )
        self.shuffle = ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        unchanged, inner = x.chunk(2, dim=1)
        output: Tensor = self.shuffle(torch.cat([unchanged, self.branch(inner)], dim=1))
        return output


class HalvingBlock(nn.Module):
    """Two branches that read all channels and halve the map; each computes half of the output channels."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.short = nn.Sequential(
            conv_norm(inputs, inputs, 3, stride=2, groups=inputs, act=False), conv_norm(inputs, half, 1)
        )
        self.branch = nn.Sequential(
            conv_norm(inputs, half, 1),
            conv_norm(half, half, 3, stride=2, groups=half, act=False),
            conv_norm(half, half, 1),
        )
        self.shuffle = ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, ceil(H / 2), ceil(W / 2))."""
        output: Tensor = self.shuffle(torch.cat([self.short(x), self.branch(x)], dim=1))
        return output


def shufflenetv1(*, num_classes: int, in_chans: int = 3, global_pool: str = "avg") -> CifarNet:
    """Build ShuffleNet 1x with three groups."""

    def block(inputs: int, outputs: int, halving: bool) -> nn.Module:
        groups = 1 if inputs == STEM else GROUPS  # the stem has too few channels (Zhang et al., section 3.2)
        return GroupedBottleneck(inputs, outputs, halving=halving, first_groups=groups)

    parts, stages = _stages_of(in_chans, WIDTHS, block)
    return CifarNet(parts, stages, features=WIDTHS[-1], num_classes=num_classes, global_pool=global_pool)


def shufflenetv2(*, num_classes: int, in_chans: int = 3, global_pool: str = "avg") -> CifarNet:
    """Build ShuffleNetV2 1x."""

    def block(inputs: int, outputs: int, halving: bool) -> nn.Module:
        return HalvingBlock(inputs, outputs) if halving else SplitBlock(outputs)

    parts, stages = _stages_of(in_chans, WIDTHS_V2, block)
    parts["last"] = conv_norm(WIDTHS_V2[-1], LAST_V2, 1)
    return CifarNet(
        parts, stages, tail=("last",), features=LAST_V2, num_classes=num_classes, global_pool=global_pool
    )


def _stages_of(
    in_chans: int, widths: tuple[int, ...], block: Callable[[int, int, bool], nn.Module]
) -> tuple[dict[str, nn.Module], list[Stage]]:
    parts: dict[str, nn.Module] = {"stem": conv_norm(in_chans, STEM, 1)}
    stages = [Stage(("stem",), STEM, 1)]
    inputs = STEM
    for number, (width, count) in enumerate(zip(widths, BLOCKS, strict=True)):
        blocks = [block(inputs, width, True), *(block(width, width, False) for _ in range(count - 1))]
        inputs = width
        parts[f"layer{number + 1}"] = nn.Sequential(*blocks)
        stages.append(Stage((f"layer{number + 1}",), width, 2 ** (number + 1)))
    return parts, stages
