"""Rounding to the grid of an INT8 file, with a gradient for training.

The step sizes of activations are learned by LSQ (Esser et al., "Learned step size quantization", ICLR 2020).
Our parameter is their logarithm, so that an update is a share of the range, however small the range is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Grid:
    """The values of a QuantizeLinear: (q - zero_point) * scale for whole q from lowest to highest.

    Attributes:
        scale: The step size.
        zero_point: The q of the value 0.
        lowest: Smallest q.
        highest: Largest q.
    """

    scale: float
    zero_point: int
    lowest: int
    highest: int

    @property
    def symmetric(self) -> bool:
        """Whether the zero point is the middle, and the range reaches equally far to both sides.

        For int8 these are 127 steps; the file may still round to -128.
        """
        return self.lowest < 0

    def range_at(self, scale: float) -> tuple[float, float]:
        """Return the range of floats for which the quantizer makes this grid, with another scale."""
        low = -self.highest if self.symmetric else self.lowest - self.zero_point
        return low * scale, (self.highest - self.zero_point) * scale


class _Round(torch.autograd.Function):
    """Rounds values; the gradients are those of LSQ.

    For the values: straight through within the grid's ends, zero beyond. For the scale: each value's distance
    from the grid within the ends, the end itself beyond.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor, grid: Grid) -> Tensor:
        """Return the rounded values, float of the same shape."""
        ctx.save_for_backward(values, scale)
        ctx.grid = grid
        # Not torch.fake_quantize: it turns NaN into the lowest end, which hides a diverged network from the
        # loss. Not every device has it, and on CPUs it is slower.
        low, high = grid.lowest - grid.zero_point, grid.highest - grid.zero_point
        return (values / scale).round_().clamp_(low, high).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        """Return the gradients of values and scale; none for the grid."""
        values, scale = ctx.saved_tensors
        grid: Grid = ctx.grid
        (gradient,) = gradients
        low, high = grid.lowest - grid.zero_point, grid.highest - grid.zero_point
        steps = values / scale
        rounded = steps.round()
        inside = (rounded >= low) & (rounded <= high)
        to_values = gradient * inside
        if not ctx.needs_input_grad[1]:
            return to_values, None, None
        distance = rounded.clamp(low, high) - steps * inside
        # LSQ's factor: without it, the gradient would grow with the number of values in the map.
        # The longer side counts: a grid may be wholly on one side of zero.
        share = 1.0 / math.sqrt(max(1, values[0].numel()) * max(high, -low))
        return to_values, (gradient * distance).sum() * share, None


class Rounding(nn.Module):
    """Rounds one activation of the network: float (n, ...) to the same shape and dtype.

    Args:
        grid: The first grid.
        learn: Whether its scale is a parameter. The zero point stays, so that both ends of a range move
            together.
    """

    log_scale: Tensor

    def __init__(self, grid: Grid, *, learn: bool) -> None:
        super().__init__()
        self.grid = grid
        log_scale = torch.tensor(math.log(grid.scale), dtype=torch.float32)
        if learn:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    def forward(self, values: Tensor) -> Tensor:
        """Return the rounded values, of the same shape and dtype."""
        # In float32: bfloat16 has fewer digits than the grid has steps.
        with torch.autocast(values.device.type, enabled=False):
            rounded: Tensor = _Round.apply(values.float(), self.log_scale.exp(), self.grid)
        return rounded.to(values.dtype)

    def range(self) -> tuple[float, float]:
        """Return the range of floats for which the quantizer makes the present grid."""
        return self.grid.range_at(math.exp(self.log_scale.item()))


class WeightRounding(nn.Module):
    """Rounds a weight like the quantizer, by its own largest value, with a straight-through gradient.

    A parametrisation (`torch.nn.utils.parametrize`): the layer computes with the rounded weight, and the
    float weight is the parameter.

    Args:
        levels: Steps from zero to the largest value.
        per_channel: Whether each output channel (the first dimension) has its scale.
    """

    def __init__(self, levels: int, *, per_channel: bool) -> None:
        super().__init__()
        self.levels = levels
        self.per_channel = per_channel

    def forward(self, weight: Tensor) -> Tensor:
        """Return the rounded weight, of the same shape and dtype."""
        with torch.no_grad():
            rest = tuple(range(1 if self.per_channel else 0, weight.ndim))
            largest = weight.abs().amax(dim=rest, keepdim=True)
            scale = (largest / self.levels).clamp_min(torch.finfo(weight.dtype).tiny)
            difference = (weight / scale).round() * scale - weight
        return weight + difference
