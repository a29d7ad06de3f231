"""Windows over a map: regions at several scales, pooled to one vector each in one matrix product.

Windows are defined in relative coordinates (0 to 1 on both axes), so that two maps of different
sizes are cut into the same regions of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Pool = Literal["avg", "max", "gem"]

GEM_POWER = 3.0
"""Exponent of generalised-mean pooling: where Radenović et al. (2018) start from."""
GEM_FLOOR = 1e-6
TOUCH = 1e-9
"""Overlaps below this share of the map's side are rounding."""


@dataclass(frozen=True)
class Window:
    """A region in relative coordinates. grid: windows per axis at its scale, 1 the coarsest."""

    grid: int
    top: float
    left: float
    size: float

    @property
    def bottom(self) -> float:
        return self.top + self.size

    @property
    def right(self) -> float:
        return self.left + self.size


def cut(grids: Sequence[int], *sizes: tuple[int, int]) -> list[int]:
    """The grids, coarsest first, none finer than the smallest side of the maps: a finer one becomes
    that side's own. Finer windows would copy cells, and a copy is a negative that equals the positive."""
    smallest = min(min(size) for size in sizes)
    return sorted({min(grid, smallest) for grid in grids})


def windows(grids: Sequence[int], stride: float) -> list[Window]:
    """Every window of every grid, coarsest grid first, row by row.

    stride: step as a share of the window. A grid g has floor((1 - 1/g) / (stride/g)) + 1 windows per
    axis: g without overlap (stride 1), 2g - 1 with half overlap.
    """
    made = []
    for grid in grids:
        step = stride / grid
        count = int((1.0 - 1.0 / grid) / step + 1e-6) + 1
        made += [
            Window(grid, row * step, column * step, 1.0 / grid)
            for row in range(count)
            for column in range(count)
        ]
    return made


def pooling_matrix(regions: Sequence[Window], height: int, width: int) -> Tensor:
    """(M, height*width) float32: in row m the area that each pixel shares with window m, summing to 1."""
    rows = overlaps([(region.top, region.bottom) for region in regions], height)
    columns = overlaps([(region.left, region.right) for region in regions], width)
    areas = (rows[:, :, None] * columns[:, None, :]).flatten(1)
    return (areas / areas.sum(1, keepdim=True)).float()


def distinct(regions: Sequence[Window], *sizes: tuple[int, int]) -> list[Window]:
    """The windows that touch a set of pixels of their own on maps of each of these sizes.

    Of windows that touch the same pixels of any map, the first (coarsest) stays.
    """
    kept: list[Window] = []
    seen: list[set[tuple[int, ...]]] = [set() for _ in sizes]
    supports = [[_support(row) for row in pooling_matrix(regions, *size)] for size in sizes]
    for number, region in enumerate(regions):
        mine = [support[number] for support in supports]
        if any(own in known for own, known in zip(mine, seen, strict=True)):
            continue
        kept.append(region)
        for own, known in zip(mine, seen, strict=True):
            known.add(own)
    return kept


def intersection_over_union(regions: Sequence[Window]) -> Tensor:
    """(M, M) float64: shared area over joint area of each pair of windows."""
    corners = torch.tensor(
        [(region.top, region.left, region.bottom, region.right) for region in regions], dtype=torch.float64
    )
    low = torch.maximum(corners[:, None, :2], corners[None, :, :2])
    high = torch.minimum(corners[:, None, 2:], corners[None, :, 2:])
    shared = (high - low).clamp_min(0.0).prod(-1)
    area = (corners[:, 2:] - corners[:, :2]).prod(-1)
    return shared / (area[:, None] + area[None, :] - shared)


def overlaps(intervals: Sequence[tuple[float, float]], side: int) -> Tensor:
    """(M, side) float64: the length that each pixel shares with each interval, in pixels."""
    edges = torch.tensor(intervals, dtype=torch.float64) * side
    pixels = torch.arange(side, dtype=torch.float64)
    low = torch.maximum(edges[:, :1], pixels)
    high = torch.minimum(edges[:, 1:], pixels + 1.0)
    lengths = (high - low).clamp_min(0.0)
    return torch.where(lengths > TOUCH * side, lengths, 0.0)


class WindowPool(nn.Module):
    """Pools a map of one size into one vector a window.

    avg: area-weighted mean. gem: generalised mean with exponent 3 of the values above zero. max: over
    every pixel that the window touches.
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

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, M, C) float32. Raises ValueError for a map of another size."""
        if tuple(maps.shape[-2:]) != self.size:
            raise ValueError(f"windows were laid on a {self.size} map, found {tuple(maps.shape[-2:])}")
        with torch.autocast(maps.device.type, enabled=False):
            maps = maps.float()
            if self.kind == "max":
                # Windows are products of intervals: first over rows, then over columns, each an
                # index whose short intervals repeat a pixel.
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
    """Pixels of each different interval, (R, L), short ones repeating a pixel; which one each has, (M,)."""
    different = sorted(set(intervals))
    touched = [row.nonzero().flatten().tolist() for row in overlaps(different, side)]
    longest = max(len(pixels) for pixels in touched)
    padded = [pixels + pixels[-1:] * (longest - len(pixels)) for pixels in touched]
    return torch.tensor(padded), torch.tensor([different.index(interval) for interval in intervals])


def _support(row: Tensor) -> tuple[int, ...]:
    return tuple(row.nonzero().flatten().tolist())
