"""VGG networks for 32 pixels.

Simonyan and Zisserman, "Very Deep Convolutional Networks" (2015), table 1, as papers on distillation
have it: batch norm after each 3x3 convolution, the map halved before the second, third and fourth
block only, so that 4x4 places are left, and one linear layer in place of the three.
"""

from __future__ import annotations

from torch import nn

from stages.models.cifar.staged import CifarNet, Stage, initialised

WIDTHS = (64, 128, 256, 512, 512)
"""Channels of the five blocks."""


def vgg(convolutions: int, /, *, num_classes: int, in_chans: int = 3, global_pool: str = "avg") -> CifarNet:
    """convolutions: in each of the five blocks; 1 gives VGG8, 2 VGG13 (the names count three linear
    layers, as the original has)."""
    parts: dict[str, nn.Module] = {}
    stages = []
    inputs = in_chans
    reduction = 1
    for number, width in enumerate(WIDTHS):
        layers: list[nn.Module] = []
        if 1 <= number <= 3:
            layers.append(nn.MaxPool2d(2))
            reduction *= 2
        for _ in range(convolutions):
            layers += [nn.Conv2d(inputs, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU()]
            inputs = width
        parts[f"block{number}"] = nn.Sequential(*layers)
        stages.append(Stage((f"block{number}",), width, reduction))
    model = CifarNet(parts, stages, features=inputs, num_classes=num_classes, global_pool=global_pool)
    return initialised(model, classifier_std=0.01)
