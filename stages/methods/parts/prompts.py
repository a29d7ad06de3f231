"""Prompts: learned additions to a frozen teacher's maps, between its stages."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import override

from stages.methods.parts.stage_pairs import Shape
from stages.models.resampling import AreaResample

SQUEEZE_RATIO = 16
"""Channels divided by those of the squeezed vector (Hu et al., 2018)."""


class Prompt(nn.Module):
    """Compute x + beta * prompt(x, feedback), where beta is learned and starts at 0.

    prompt: x concatenated with the feedback, 1x1 to C channels, depthwise 5x5, 1x1, a
    squeeze-and-excitation gate, 1x1. Our reading of PAT: its code has these layers twice, for the fusion
    and for the prompt, with a full 5x5 convolution in the fusion, and replaces the map by the gate's
    values; ours multiplies by them, like the authors of the gate.

    Args:
        shape: (C, H, W) of x.
        feedback: (C', H', W') of the feedback.
    """

    def __init__(self, shape: Shape, feedback: Shape) -> None:
        super().__init__()
        channels, *size = shape
        self.align = nn.Sequential(
            nn.Conv2d(feedback[0], channels, 1, bias=False),
            AreaResample((feedback[1], feedback[2]), (size[0], size[1])),
        )
        self.mix = nn.Sequential(
            nn.Conv2d(2 * channels, channels, 1),
            nn.Conv2d(channels, channels, 5, padding=2, groups=channels),
            nn.GELU(),
            nn.Conv2d(channels, channels, 1),
        )
        squeezed = max(channels // SQUEEZE_RATIO, 1)
        self.gate = nn.Sequential(
            nn.Linear(channels, squeezed), nn.GELU(), nn.Linear(squeezed, channels), nn.Sigmoid()
        )
        self.last = nn.Conv2d(channels, channels, 1)
        self.beta = nn.Parameter(torch.zeros(()))

    @override
    def forward(self, maps: Tensor, feedback: Tensor) -> Tensor:
        """Add the prompt to the maps.

        Args:
            maps: (B, C, H, W).
            feedback: (B, C', H', W').

        Returns:
            (B, C, H, W) in the maps' dtype.
        """
        mixed = self.mix(torch.cat([maps, self.align(feedback).to(maps.dtype)], 1))
        mixed = mixed * self.gate(mixed.mean((2, 3)))[:, :, None, None]
        prompt: Tensor = self.beta * self.last(mixed)
        return maps + prompt.to(maps.dtype)
