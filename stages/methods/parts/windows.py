"""Windows over a map: regions at several scales, each pooled to one vector with one matrix product.

Windows have relative coordinates (0 to 1 on both axes), so that two maps of different sizes are divided
into the same regions of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

Pool = Literal["avg", "max", "gem"]

GEM_POWER = 3.0
"""Exponent of generalized-mean pooling: the initial value of Radenović et al. (2018)."""
GEM_FLOOR = 1e-6
MIN_OVERLAP = 1e-9
"""Overlaps below this share of the map's side are rounding errors."""


@dataclass(frozen=True)
class Window:
    """A square region in relative coordinates.

    Args:
        grid: Windows per axis at its scale; 1 is the coarsest.
        top: The upper edge, 0 to 1.
        left: The left edge, 0 to 1.
        size: The side, 0 to 1.
    """

    grid: int
    top: float
    left: float
    size: float

    @property
    def bottom(self) -> float:
        """The lower edge, 0 to 1."""
        return self.top + self.size

    @property
    def right(self) -> float:
        """The right edge, 0 to 1."""
        return self.left + self.size


def limit_grids(grids: Sequence[int], *sizes: tuple[int, int]) -> list[int]:
    """Limit grids to the smallest side of several maps.

    Finer windows would be copies of cells, and a copy is a negative that equals the positive.

    Args:
        grids: Windows per axis at each scale.
        *sizes: (H, W) of each map.

    Returns:
        The different grids, the coarsest first; a grid above the smallest side becomes that side.
    """
    smallest = min(min(size) for size in sizes)
    return sorted({min(grid, smallest) for grid in grids})


def sliding_windows(grids: Sequence[int], stride: float) -> list[Window]:
    """List every window of every grid.

    A grid g has floor((1 - 1/g) / (stride/g)) + 1 windows per axis: g without overlap (stride 1), 2g - 1
    with half overlap.

    Args:
        grids: Windows per axis at each scale, without overlap.
        stride: Step as a share of the window, above 0 and at most 1.

    Returns:
        The windows in the order of the grids, row by row.
    """
    regions: list[Window] = []
    for grid in grids:
        step = stride / grid
        count = int((1.0 - 1.0 / grid) / step + 1e-6) + 1
        regions += [
            Window(grid, row * step, column * step, 1.0 / grid)
            for row in range(count)
            for column in range(count)
        ]
    return regions


def pooling_matrix(regions: Sequence[Window], height: int, width: int) -> Tensor:
    """Compute the area that each pixel shares with each window.

    Args:
        regions: M windows.
        height: Pixels of the map.
        width: Pixels of the map.

    Returns:
        (M, height * width) float32; rows have sum 1.
    """
    rows = overlap_lengths([(region.top, region.bottom) for region in regions], height)
    columns = overlap_lengths([(region.left, region.right) for region in regions], width)
    areas = (rows[:, :, None] * columns[:, None, :]).flatten(1)
    return (areas / areas.sum(1, keepdim=True)).float()


def without_duplicates(regions: Sequence[Window], *sizes: tuple[int, int]) -> list[Window]:
    """Remove windows that touch the same pixels as an earlier window on any of several maps.

    Args:
        regions: Windows, the coarsest first.
        *sizes: (H, W) of each map.

    Returns:
        The windows that remain: of windows that touch the same pixels, the first.
    """
    distinct: list[Window] = []
    known: list[set[tuple[int, ...]]] = [set() for _ in sizes]
    supports = [[_touched_pixels(row) for row in pooling_matrix(regions, *size)] for size in sizes]
    for region, *pixels_by_map in zip(regions, *supports, strict=True):
        if any(pixels in earlier for pixels, earlier in zip(pixels_by_map, known, strict=True)):
            continue
        distinct.append(region)
        for pixels, earlier in zip(pixels_by_map, known, strict=True):
            earlier.add(pixels)
    return distinct


def intersection_over_union(regions: Sequence[Window]) -> Tensor:
    """Compute the shared area divided by the joint area of each pair of windows.

    Args:
        regions: M windows.

    Returns:
        (M, M) float64.
    """
    corners = torch.tensor(
        [(region.top, region.left, region.bottom, region.right) for region in regions], dtype=torch.float64
    )
    low = torch.maximum(corners[:, None, :2], corners[None, :, :2])
    high = torch.minimum(corners[:, None, 2:], corners[None, :, 2:])
    shared = (high - low).clamp_min(0.0).prod(-1)
    area = (corners[:, 2:] - corners[:, :2]).prod(-1)
    return shared / (area[:, None] + area[None, :] - shared)


def overlap_lengths(intervals: Sequence[tuple[float, float]], side: int) -> Tensor:
    """Compute the length that each pixel shares with each interval.

    Args:
        intervals: M pairs of start and end, 0 to 1.
        side: Pixels along the axis.

    Returns:
        (M, side) float64, in pixels.
    """
    edges = torch.tensor(intervals, dtype=torch.float64) * side
    pixels = torch.arange(side, dtype=torch.float64)
    low = torch.maximum(edges[:, :1], pixels)
    high = torch.minimum(edges[:, 1:], pixels + 1.0)
    lengths = (high - low).clamp_min(0.0)
    return torch.where(lengths > MIN_OVERLAP * side, lengths, 0.0)


class WindowPool(nn.Module):
    """Pool each window of a map to one vector.

    avg: area-weighted mean. gem: generalized mean with exponent 3 of the values above zero. max: the
    largest value of all pixels that the window touches.

    Args:
        regions: M windows.
        height: Pixels of the maps.
        width: Pixels of the maps.
        kind: How a window becomes one vector.
    """

    matrix: Tensor
    rows: Tensor
    columns: Tensor
    row_of: Tensor
    column_of: Tensor

    def __init__(self, regions: Sequence[Window], height: int, width: int, kind: Pool = "avg") -> None:
        super().__init__()
        self.kind = kind
        self.size = (height, width)
        self.register_buffer("matrix", pooling_matrix(regions, height, width), persistent=False)
        if kind == "max":
            rows, row_of = _intervals([(region.top, region.bottom) for region in regions], height)
            columns, column_of = _intervals([(region.left, region.right) for region in regions], width)
            for name, indices in (
                ("rows", rows),
                ("columns", columns),
                ("row_of", row_of),
                ("column_of", column_of),
            ):
                self.register_buffer(name, indices, persistent=False)

    @override
    def forward(self, maps: Tensor) -> Tensor:
        """Pool every window.

        Args:
            maps: (B, C, H, W) of any float dtype.

        Returns:
            (B, M, C) float32.

        Raises:
            ValueError: The maps have another size than the windows were computed for.
        """
        if tuple(maps.shape[-2:]) != self.size:
            raise ValueError(
                f"the windows were computed for maps of {self.size}, found {tuple(maps.shape[-2:])}"
            )
        with torch.autocast(maps.device.type, enabled=False):
            maps = maps.float()
            if self.kind == "max":
                # A window is a product of intervals: first over rows, then over columns. Each index has
                # the same length; short intervals repeat a pixel.
                over_rows = maps[:, :, self.rows].amax(3)
                over_both = over_rows[..., self.columns].amax(4)
                return over_both[:, :, self.row_of, self.column_of].transpose(1, 2)
            # A view, both for NCHW and for channels_last.
            pixels = maps.flatten(2).transpose(1, 2)
            if self.kind == "gem":
                powers = pixels.clamp_min(GEM_FLOOR).pow(GEM_POWER)
                return torch.matmul(self.matrix, powers).pow(1.0 / GEM_POWER)
            return torch.matmul(self.matrix, pixels)


def _intervals(intervals: Sequence[tuple[float, float]], side: int) -> tuple[Tensor, Tensor]:
    """List the pixels of each different interval, (R, L), and the interval of each window, (M,).

    Short intervals repeat their last pixel.
    """
    different = sorted(set(intervals))
    touched = [row.nonzero().flatten().tolist() for row in overlap_lengths(different, side)]
    longest = max(len(pixels) for pixels in touched)
    padded = [pixels + pixels[-1:] * (longest - len(pixels)) for pixels in touched]
    return torch.tensor(padded), torch.tensor([different.index(interval) for interval in intervals])


def _touched_pixels(row: Tensor) -> tuple[int, ...]:
    return tuple(row.nonzero().flatten().tolist())
