"""Branches of OFA-KD: small classifiers on the maps at the student's stage ends.

Source: Hao et al., 2023, official code, distillers/ofa.py. Our reading: the code chooses by the kind of
network; here the choice follows from the maps. Every map is a grid of cells, including the patch tokens
of a transformer; class tokens are not part of it, so a token branch ends in the mean over the cells where
the official code reads the class token.
"""

from __future__ import annotations

import itertools
import math

from torch import Tensor, nn
from typing_extensions import override

from stages.methods.parts.batch_norm import SingleValueBatchNorm
from stages.methods.parts.map_transformer import MapTransformer

MIN_PATCHES_PER_AXIS = 7
"""Patches are merged while at least this many per axis remain."""
HEADS = 4


def build_branch(
    shape: tuple[int, int, int], deeper_stages: int, width: int, classes: int, *, shrinks: bool
) -> nn.Module:
    """Build the classifier of one stage end.

    Args:
        shape: (C, H, W) of the map at the stage end.
        deeper_stages: The number of stage ends behind this one; 0 for the deepest.
        width: Channels before the classifier of a convolutional branch.
        classes: K.
        shrinks: Whether the network's maps shrink from stage to stage; if not, their cells are tokens.

    Returns:
        A module that maps (B, C, H, W) to logits (B, K).
    """
    if shrinks:
        return _convolutional_branch(shape[0], deeper_stages, width, classes)
    return _token_branch(shape, deeper_stages, classes)


class PooledClassifier(nn.Module):
    """Take the mean over the cells of a map and apply one linear layer.

    Args:
        channels: C.
        classes: K.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(channels, classes)

    @override
    def forward(self, maps: Tensor) -> Tensor:
        """Compute the logits.

        Args:
            maps: (B, C, H, W).

        Returns:
            (B, K).
        """
        logits: Tensor = self.classifier(maps.mean((2, 3)))
        return logits


def separable_convolution(in_channels: int, out_channels: int) -> nn.Sequential:
    """Build OFA-KD's separable convolution, which halves the size of a map.

    Two groups of depthwise 3x3, 1x1, batch norm and ReLU; the first group has stride 2.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.

    Returns:
        A module that maps (B, in_channels, H, W) to (B, out_channels, ceil(H/2), ceil(W/2)).
    """
    layers: list[nn.Module] = []
    for stride, channels in ((2, in_channels), (1, out_channels)):
        layers += [
            nn.Conv2d(in_channels, in_channels, 3, stride, 1, groups=in_channels, bias=False),
            nn.Conv2d(in_channels, channels, 1, bias=False),
            SingleValueBatchNorm(channels),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)


def _convolutional_branch(channels: int, deeper_stages: int, width: int, classes: int) -> nn.Module:
    """Build one separable convolution for each deeper stage, with twice the channels each time.

    The last has `width` channels. At the deepest stage end the branch is a 1x1 convolution.
    """
    if deeper_stages == 0:
        return nn.Sequential(nn.Conv2d(channels, width, 1), PooledClassifier(width, classes))
    widths = [channels * 2**number for number in range(deeper_stages)] + [width]
    steps = [separable_convolution(before, after) for before, after in itertools.pairwise(widths)]
    return nn.Sequential(*steps, PooledClassifier(width, classes))


def _token_branch(shape: tuple[int, int, int], deeper_stages: int, classes: int) -> nn.Module:
    """Build patch merging layers, then one transformer block for each deeper stage, at least one.

    A merging layer is a linear layer on 2x2 neighbours with a norm before it; GELU between the layers.
    """
    channels, height, width = shape
    layers: list[nn.Module] = []
    smallest = min(height, width)
    merges = max(int(math.log2(smallest / MIN_PATCHES_PER_AXIS)), 0) if smallest else 0
    for number in range(merges):
        layers += [nn.GELU()] if number else []
        # A side with an odd number of patches is padded, so that no patch is dropped.
        odd = (height % 2, width % 2)
        layers += [nn.GroupNorm(1, channels), nn.Conv2d(channels, channels, 2, 2, odd, bias=False)]
        height, width = height // 2 + odd[0], width // 2 + odd[1]
    blocks = MapTransformer(channels, HEADS, max(deeper_stages, 1))
    return nn.Sequential(*layers, blocks, PooledClassifier(channels, classes))
