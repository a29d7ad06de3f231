"""VGG networks for 32 pixels.

Simonyan and Zisserman, "Very Deep Convolutional Networks" (2015), table 1, in the form of papers on
distillation: batch norm follows each 3x3 convolution, the map is halved only before the second, third and
fourth block, so the final map is 4x4, and one linear layer replaces the three.
"""

from __future__ import annotations

from torch import nn

from stages.models.cifar.staged import CifarNet, Stage, initialise

WIDTHS = (64, 128, 256, 512, 512)
"""Channels of the five blocks."""


def vgg(convolutions: int, /, *, num_classes: int, in_chans: int = 3, global_pool: str = "avg") -> CifarNet:
    """Build a VGG network.

    Args:
        convolutions: Convolutions in each of the five blocks: 1 for VGG8, 2 for VGG13 (the names count the
            original's three linear layers).
        num_classes: The number of classes.
        in_chans: Channels of the images.
        global_pool: timm's name of the pooling.
    """
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
    return initialise(model, classifier_std=0.01)
