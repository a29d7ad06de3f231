"""Branches that turn the map at a stage end into an answer: (B, C, H, W) -> logits (B, K).

After OFA-KD (Hao et al., 2023, official code, distillers/ofa.py), with what it takes from the kind
of network taken from the maps: every map is a grid of cells here, tokens among them, and class
tokens are left out. So a token branch ends in the mean over the cells also where the code takes the
class token.
"""

from __future__ import annotations

import itertools
import math

from torch import Tensor, nn

from stages.methods.parts.blocks import MapBlocks, separable

FINAL_GRID = 7
"""Patches are merged as long as so many per axis are left."""
HEADS = 4


def branch(
    end: tuple[int, int, int], stages_behind: int, width: int, classes: int, *, shrinks: bool
) -> nn.Module:
    """The branch at a map (C, H, W) with so many further stage ends behind it (0: the deepest).

    shrinks: whether the network's maps shrink from end to end; if not, its cells are tokens.
    width: channels before the classifier of a branch of convolutions.
    """
    return (
        _of_convolutions(end[0], stages_behind, width, classes)
        if shrinks
        else _of_tokens(end, stages_behind, classes)
    )


class Answer(nn.Module):
    """Mean over the cells, then one linear layer: (B, C, H, W) -> (B, K)."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(channels, classes)

    def forward(self, maps: Tensor) -> Tensor:
        answers: Tensor = self.classifier(maps.mean((2, 3)))
        return answers


def _of_convolutions(channels: int, stages_behind: int, width: int, classes: int) -> nn.Module:
    """One separable convolution of stride 2 for each stage behind, doubling the channels and ending in
    `width`; at the deepest end a 1x1 convolution."""
    if stages_behind == 0:
        return nn.Sequential(nn.Conv2d(channels, width, 1), Answer(width, classes))
    widths = [channels * 2**number for number in range(stages_behind)] + [width]
    steps = [separable(inputs, outputs) for inputs, outputs in itertools.pairwise(widths)]
    return nn.Sequential(*steps, Answer(width, classes))


def _of_tokens(end: tuple[int, int, int], stages_behind: int, classes: int) -> nn.Module:
    """Patches merged two by two (a linear layer on four neighbours, norm before, GELU between), then one
    transformer block for each stage behind, at least one."""
    channels, height, width = end
    layers: list[nn.Module] = []
    merges = max(int(math.log2(min(height, width) / FINAL_GRID)), 0) if min(height, width) else 0
    for number in range(merges):
        layers += [nn.GELU()] if number else []
        # A side of an odd number of patches is padded, so that none is left out.
        odd = (height % 2, width % 2)
        layers += [nn.GroupNorm(1, channels), nn.Conv2d(channels, channels, 2, 2, odd, bias=False)]
        height, width = height // 2 + odd[0], width // 2 + odd[1]
    return nn.Sequential(
        *layers, MapBlocks(channels, HEADS, max(stages_behind, 1)), Answer(channels, classes)
    )
