"""Prompts: what is added to a frozen network's maps between its stages, so that they serve the student."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stages.methods.parts.ends import Shape
from stages.models.resampling import AreaResample

RATIO = 16
"""Channels for each one of the squeezed vector (Hu et al., 2018)."""


class Prompt(nn.Module):
    """x + beta * prompt(x, feedback), beta learned from 0 on: (B, C, H, W), (B, C', H', W') -> as x.

    prompt: x beside the feedback, 1x1 to C, depthwise 5x5, 1x1, a squeeze-and-excitation gate, 1x1. Our
    reading: PAT's code has the like twice, for the fusion and for the prompt, the fusion's 5x5 over all
    channels, and replaces the map by the gate's values; ours multiplies by them, as the gate's authors do.
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
        squeezed = max(channels // RATIO, 1)
        self.gate = nn.Sequential(
            nn.Linear(channels, squeezed), nn.GELU(), nn.Linear(squeezed, channels), nn.Sigmoid()
        )
        self.last = nn.Conv2d(channels, channels, 1)
        self.beta = nn.Parameter(torch.zeros(()))

    def forward(self, maps: Tensor, feedback: Tensor) -> Tensor:
        mixed = self.mix(torch.cat([maps, self.align(feedback).to(maps.dtype)], 1))
        mixed = mixed * self.gate(mixed.mean((2, 3)))[:, :, None, None]
        return maps + (self.beta * self.last(mixed)).to(maps.dtype)
