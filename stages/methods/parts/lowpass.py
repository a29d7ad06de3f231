"""Low-pass filters that reduce a map to coarse cells, with one matrix product per map.

A filter is a matrix (M, H * W) for the M = sum of g^2 cells of all grids g, the coarsest first, row by
row. Every filter is separable (a Kronecker product of one matrix per axis) and preserves a constant map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from stages.methods.parts.windows import overlap_lengths

Filter = Literal["avgpool", "gaussian", "dct", "learnable_depthwise"]


class LowPass(nn.Module):
    """Filter maps of one size and reduce them to cells.

    avgpool: the mean of each cell, by exact area. gaussian: weights of a normal density around the
    cell's center, with sum 1. dct: the g lowest cosine frequencies per axis (DCT-II), then the mean of
    each cell. learnable_depthwise: a learned window per channel with repeated borders, then the mean of
    each cell; its weights are a softmax (above 0, with sum 1, so it remains a low-pass) and equal at the
    start.

    Args:
        kind: The filter.
        grids: Cells per axis at each scale, none above H or W.
        shape: (C, H, W) of the maps.
        sigma: Standard deviation of `gaussian`, in cells.
        kernel: Side of the window of `learnable_depthwise`, in pixels, odd.
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
        super().__init__()
        channels, height, width = shape
        self.taps = kernel**2 if kind == "learnable_depthwise" else 1
        if kind == "learnable_depthwise":
            offsets = range(-(kernel // 2), kernel // 2 + 1)
            pairs = [
                (
                    box_matrix(grid, height) @ shift_matrix(down, height),
                    box_matrix(grid, width) @ shift_matrix(right, width),
                )
                for down in offsets
                for right in offsets
                for grid in grids
            ]
            self.weights = nn.Parameter(torch.zeros(channels, self.taps))
        elif kind == "gaussian":
            pairs = [
                (gaussian_matrix(grid, height, sigma), gaussian_matrix(grid, width, sigma)) for grid in grids
            ]
        elif kind == "dct":
            pairs = [(cosine_matrix(grid, height), cosine_matrix(grid, width)) for grid in grids]
        else:
            pairs = [(box_matrix(grid, height), box_matrix(grid, width)) for grid in grids]
        matrix = torch.cat([torch.kron(rows, columns) for rows, columns in pairs])
        self.register_buffer("matrix", matrix.float(), persistent=False)

    @override
    def forward(self, maps: Tensor) -> Tensor:
        """Compute the cells of all grids.

        Args:
            maps: (B, C, H, W) of any float dtype.

        Returns:
            (B, M, C) float32.
        """
        with torch.autocast(maps.device.type, enabled=False):
            # A view, both for NCHW and for channels_last.
            pixels = maps.float().flatten(2).transpose(1, 2)
            cells = torch.matmul(self.matrix, pixels)
            if self.taps == 1:
                return cells
            # The filter and the mean commute: M cells for each tap instead of H x W pixels.
            shares = self.weights.float().softmax(1)
            images, _, channels = cells.shape
            return torch.einsum("btmc,ct->bmc", cells.reshape(images, self.taps, -1, channels), shares)


def box_matrix(cells: int, side: int) -> Tensor:
    """Build the matrix of cell means, by the length that a cell shares with each pixel.

    Args:
        cells: Cells along the axis.
        side: Pixels along the axis.

    Returns:
        (cells, side) float64; rows have sum 1.
    """
    shared = overlap_lengths([(n / cells, (n + 1) / cells) for n in range(cells)], side)
    weights: Tensor = shared / shared.sum(1, keepdim=True)
    return weights


def gaussian_matrix(cells: int, side: int, sigma: float) -> Tensor:
    """Build the matrix of normal densities around the centers of the cells.

    Args:
        cells: Cells along the axis.
        side: Pixels along the axis.
        sigma: Standard deviation, in cells.

    Returns:
        (cells, side) float64; rows have sum 1.
    """
    centers = torch.arange(cells, dtype=torch.float64) + 0.5
    pixels = (torch.arange(side, dtype=torch.float64) + 0.5) * cells / side
    return torch.softmax(-0.5 * ((pixels - centers[:, None]) / sigma) ** 2, dim=1)


def cosine_matrix(cells: int, side: int) -> Tensor:
    """Build the matrix of cell means after removing all but the `cells` lowest DCT-II frequencies.

    Args:
        cells: Cells along the axis, and frequencies.
        side: Pixels along the axis.

    Returns:
        (cells, side) float64; rows have sum 1.
    """
    frequencies = torch.arange(cells, dtype=torch.float64)[:, None]
    pixels = torch.arange(side, dtype=torch.float64) + 0.5
    basis = torch.cos(math.pi * frequencies * pixels / side)
    basis = basis / torch.linalg.vector_norm(basis, dim=1, keepdim=True)
    means: Tensor = box_matrix(cells, side) @ basis.T @ basis
    return means


def shift_matrix(offset: int, side: int) -> Tensor:
    """Build the matrix that replaces pixel n with pixel n + offset, and with the last beyond a border.

    Args:
        offset: Pixels; may be negative.
        side: Pixels along the axis.

    Returns:
        (side, side) float64.
    """
    source = (torch.arange(side) + offset).clamp(0, side - 1)
    return torch.eye(side, dtype=torch.float64)[source]
