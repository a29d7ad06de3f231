"""MobileNetV2 of half the width for 32 pixels.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (2018), table 2, as papers on
distillation have it: every width halved but that of the last 1x1 convolution, ReLU in place of ReLU6,
the stride of the second group 1, an expansion convolution also where the expansion is 1. With the
stem's stride of 2 an image of 32 pixels ends as a map of 2x2.
"""

from __future__ import annotations

from torch import Tensor, nn

from stages.models.cifar.staged import CifarNet, Stage, conv_norm, initialised

GROUPS = (
    (1, 8, 1, 1),
    (6, 12, 2, 1),
    (6, 16, 3, 2),
    (6, 32, 4, 2),
    (6, 48, 3, 1),
    (6, 80, 3, 2),
    (6, 160, 1, 1),
)
"""Expansion, channels, blocks and first stride of each group of blocks."""

STAGES = ((0, 1), (2,), (3, 4), (5, 6))
"""The groups of each stage after the stem: those between two halvings of the map."""

STEM = 16
LAST = 1280


class InvertedResidual(nn.Module):
    """1x1 up by `expansion`, 3x3 on each channel alone, 1x1 down without an activation; the input is
    added where the shape stays."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expand = conv_norm(inputs, inner, 1)
        self.depthwise = conv_norm(inner, inner, 3, stride=stride, groups=inner)
        self.project = conv_norm(inner, outputs, 1, act=False)
        self.added = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        inner = self.project(self.depthwise(self.expand(x)))
        return x + inner if self.added else inner


def mobilenetv2_half(*, num_classes: int, in_chans: int = 3, global_pool: str = "avg") -> CifarNet:
    """Called `mobile_half` or "MobileNetV2 (T=6, W=0.5)" in the papers' tables."""
    parts: dict[str, nn.Module] = {"stem": conv_norm(in_chans, STEM, 3, stride=2)}
    stages = [Stage(("stem",), STEM, 2)]
    inputs = STEM
    reduction = 2
    for number, groups in enumerate(STAGES):
        blocks: list[nn.Module] = []
        for expansion, width, count, first in (GROUPS[group] for group in groups):
            reduction *= first
            for position in range(count):
                blocks.append(InvertedResidual(inputs, width, 1 if position else first, expansion))
                inputs = width
        parts[f"blocks{number}"] = nn.Sequential(*blocks)
        stages.append(Stage((f"blocks{number}",), inputs, reduction))
    parts["last"] = conv_norm(inputs, LAST, 1)
    model = CifarNet(
        parts, stages, tail=("last",), features=LAST, num_classes=num_classes, global_pool=global_pool
    )
    return initialised(model, classifier_std=0.01)
