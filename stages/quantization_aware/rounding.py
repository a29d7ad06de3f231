"""Rounding to the grid of an INT8 file, with a gradient: how a network in training feels it.

Steps of activations are learned as in LSQ (Esser et al., "Learned step size quantization", ICLR 2020);
their logarithm is the parameter, so that an update is a share of the range, however small that is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Grid:
    """What a QuantizeLinear rounds to: (q - zero_point) * scale for whole q from lowest to highest.

    symmetric: the zero point is the middle, and the range that makes the grid reaches as far to
    either side (int8: 127 steps; the file may round to -128 all the same).
    """

    scale: float
    zero_point: int
    lowest: int
    highest: int

    @property
    def symmetric(self) -> bool:
        return self.lowest < 0

    def at(self, scale: float) -> tuple[float, float]:
        """The range of floats from which the quantizer makes this grid with the given scale."""
        low = -self.highest if self.symmetric else self.lowest - self.zero_point
        return low * scale, (self.highest - self.zero_point) * scale


class _Round(torch.autograd.Function):
    """Rounds values; gradients as LSQ defines them.

    To the values: straight through within the grid's ends, none beyond. To the scale: what each value
    is off the grid within the ends, the end itself beyond.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor, grid: Grid) -> Tensor:
        ctx.save_for_backward(values, scale)
        ctx.grid = grid
        # Not torch.fake_quantize: it makes NaN the lowest end, which hides from the loss that the network
        # has diverged, not every device has it, and on processors it is slower than this.
        low, high = grid.lowest - grid.zero_point, grid.highest - grid.zero_point
        return (values / scale).round_().clamp_(low, high).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
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
        off = rounded.clamp(low, high) - steps * inside
        # LSQ's factor: without it, a step size would be drawn by every value of the map at once.
        # The steps counted are those of the longer side: a grid may lie wholly to one side of zero.
        share = 1.0 / math.sqrt(max(1, values[0].numel()) * max(high, -low))
        return to_values, (gradient * off).sum() * share, None


class Rounding(nn.Module):
    """Rounds one activation of the network: float (n, ...) to the same shape and dtype.

    grid: where the rounding starts. learn: whether its scale is a parameter; the zero point stays,
    so that both ends of a range move together.
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
        # In float32: bfloat16 has fewer digits than the grid has steps.
        with torch.autocast(values.device.type, enabled=False):
            rounded: Tensor = _Round.apply(values.float(), self.log_scale.exp(), self.grid)
        return rounded.to(values.dtype)

    def range(self) -> tuple[float, float]:
        """The range of floats from which the quantizer makes the grid as it is now."""
        return self.grid.at(math.exp(self.log_scale.item()))


class WeightRounding(nn.Module):
    """Rounds a weight as the quantizer does, from its own largest value, with a straight-through gradient.

    A parametrisation (`torch.nn.utils.parametrize`): the layer computes with the rounded weight, and
    the float one is what learns. levels: steps from zero to the largest value.
    per_channel: a scale for each output channel, the first dimension.
    """

    def __init__(self, levels: int, *, per_channel: bool) -> None:
        super().__init__()
        self.levels = levels
        self.per_channel = per_channel

    def forward(self, weight: Tensor) -> Tensor:
        with torch.no_grad():
            rest = tuple(range(1 if self.per_channel else 0, weight.ndim))
            largest = weight.abs().amax(dim=rest, keepdim=True)
            scale = (largest / self.levels).clamp_min(torch.finfo(weight.dtype).tiny)
            off = (weight / scale).round() * scale - weight
        return weight + off
