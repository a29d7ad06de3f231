"""MobileNetV2 of half the width for 32 pixels.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (2018), table 2, in the form of
papers on distillation: all widths except that of the last 1x1 convolution are halved, ReLU replaces ReLU6,
the stride of the second group is 1, and blocks with expansion 1 also have an expansion convolution. With
the stem's stride of 2, the final map of an image of 32 pixels is 2x2.
"""

from __future__ import annotations

from torch import Tensor, nn

from stages.models.cifar.staged import CifarNet, Stage, conv_norm, initialise

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
"""Channels of the stem."""

LAST = 1280
"""Channels of the last 1x1 convolution."""


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise 3x3, 1x1 projection without an activation.

    The input is added to the output if their shapes are equal.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expand = conv_norm(inputs, inner, 1)
        self.depthwise = conv_norm(inner, inner, 3, stride=stride, groups=inner)
        self.project = conv_norm(inner, outputs, 1, act=False)
        self.has_shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, ceil(H / stride), ceil(W / stride))."""
        inner: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + inner if self.has_shortcut else inner


def mobilenetv2_half(*, num_classes: int, in_chans: int = 3, global_pool: str = "avg") -> CifarNet:
    """Build the network that papers call `mobile_half` or "MobileNetV2 (T=6, W=0.5)"."""
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
    return initialise(model, classifier_std=0.01)
