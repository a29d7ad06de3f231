"""Low-pass filters that leave a map's coarse cells: one matrix product a map, whatever the filter.

A filter is a matrix (M, H * W) for the M = sum of g^2 cells of all grids g, coarsest first, row by row.
All are products of the same on both axes, and leave a constant map as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from stages.methods.parts.windows import overlaps

Filter = Literal["avgpool", "gaussian", "dct", "learnable_depthwise"]


class LowPass(nn.Module):
    """Filters a map of one size down to its cells.

    avgpool: the mean of each cell, by exact area. gaussian: weights of a normal density around the
    cell's centre, `sigma` cells wide, of sum 1. dct: the map of its g lowest cosine frequencies per axis
    (DCT-II), then the mean of each cell. learnable_depthwise: a `kernel` x `kernel` window for each
    channel, borders repeated, then the mean of each cell; its weights are a softmax (above 0, of sum 1:
    so it stays a low-pass), learned, and even at the start.
    """

    matrix: Tensor

    def __init__(
        self,
        kind: Filter,
        grids: Sequence[int],
        shape: tuple[int, int, int],
        *,
        sigma: float = 0.5,
        kernel: int = 3,
    ) -> None:
        """shape: (C, H, W) of the maps. grids: none finer than H or W."""
        super().__init__()
        channels, height, width = shape
        self.taps = kernel**2 if kind == "learnable_depthwise" else 1
        if kind == "learnable_depthwise":
            offsets = range(-(kernel // 2), kernel // 2 + 1)
            pairs = [
                (box(grid, height) @ shift(down, height), box(grid, width) @ shift(right, width))
                for down in offsets
                for right in offsets
                for grid in grids
            ]
            self.weights = nn.Parameter(torch.zeros(channels, self.taps))
        elif kind == "gaussian":
            pairs = [(gaussian(grid, height, sigma), gaussian(grid, width, sigma)) for grid in grids]
        elif kind == "dct":
            pairs = [(cosines(grid, height), cosines(grid, width)) for grid in grids]
        else:
            pairs = [(box(grid, height), box(grid, width)) for grid in grids]
        matrix = torch.cat([torch.kron(rows, columns) for rows, columns in pairs])
        self.register_buffer("matrix", matrix.float(), persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, M, C) float32."""
        with torch.autocast(maps.device.type, enabled=False):
            # A view, both for NCHW and for channels_last.
            pixels = maps.float().flatten(2).transpose(1, 2)
            cells = torch.matmul(self.matrix, pixels)
            if self.taps == 1:
                return cells
            # Filtering and taking means may be swapped: M cells for each tap instead of H x W pixels.
            shares = self.weights.float().softmax(1)
            return torch.einsum("btmc,ct->bmc", cells.unflatten(1, (self.taps, -1)), shares)


def box(cells: int, side: int) -> Tensor:
    """(cells, side) float64: each cell's mean over the pixels, by the length that it shares with them."""
    shared = overlaps([(n / cells, (n + 1) / cells) for n in range(cells)], side)
    return shared / shared.sum(1, keepdim=True)


def gaussian(cells: int, side: int, sigma: float) -> Tensor:
    """(cells, side) float64: a normal density around each cell's centre; sigma in cells."""
    centres = torch.arange(cells, dtype=torch.float64) + 0.5
    pixels = (torch.arange(side, dtype=torch.float64) + 0.5) * cells / side
    return torch.softmax(-0.5 * ((pixels - centres[:, None]) / sigma) ** 2, dim=1)


def cosines(cells: int, side: int) -> Tensor:
    """(cells, side) float64: cells' means of what the `cells` lowest frequencies of the DCT-II keep."""
    frequencies = torch.arange(cells, dtype=torch.float64)[:, None]
    pixels = torch.arange(side, dtype=torch.float64) + 0.5
    basis = torch.cos(math.pi * frequencies * pixels / side)
    basis = basis / torch.linalg.vector_norm(basis, dim=1, keepdim=True)
    return box(cells, side) @ basis.T @ basis


def shift(offset: int, side: int) -> Tensor:
    """(side, side) float64: pixel n becomes pixel n + offset, beyond the border the last one."""
    source = (torch.arange(side) + offset).clamp(0, side - 1)
    return torch.eye(side, dtype=torch.float64)[source]
