"""The distance of two maps at several coarsenesses at once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

LEVELS = (4, 2, 1)
"""Cells per axis of the pooled levels, beside the full map (Chen et al., 2021)."""


def pyramid_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """ReviewKD's hierarchical context loss (Chen et al., 2021, "HCL") of two maps of one shape.

    With P_l the average pooling to l x l cells, levels l = full, 4, 2, 1, weights 1, 1/2, 1/4, 1/8:

        L = sum over levels of weight * mean((P_l(student) - P_l(teacher))^2) / sum of the weights

    The weights go to the levels in use, in order. A side shorter than l keeps its own cells, and a
    level that would leave the whole map as it is does not count: the official code asks the map's
    height alone, which is the same for square maps. Cells follow adaptive pooling as in that code:
    where l does not divide the side they overlap.

    student, teacher: (B, C, H, W) of any float dtype -> float32 scalar. The teacher's map may carry a
    gradient: where it must not, the caller detaches it.
    """
    with torch.autocast(student.device.type, enabled=False):
        # Pooling is linear, so that one map is pooled rather than two.
        gap = student.float() - teacher.float()
        height, width = gap.shape[-2:]
        loss, weight, total = gap.square().mean(), 1.0, 1.0
        for level in LEVELS:
            cells = min(level, height), min(level, width)
            if cells == (height, width):
                continue
            weight /= 2.0
            total += weight
            loss = loss + weight * _pooled(gap, cells).square().mean()
        return loss / total


def _pooled(maps: Tensor, cells: tuple[int, int]) -> Tensor:
    """(B, C, H, W) -> (B, C, *cells): adaptive average pooling whose gradient is deterministic on a GPU
    (torch's own is not)."""
    height, width = maps.shape[-2:]
    if height % cells[0] == 0 and width % cells[1] == 0:
        return functional.avg_pool2d(maps, (height // cells[0], width // cells[1]))
    for dim, count in zip((2, 3), cells, strict=True):
        side = maps.shape[dim]
        edges = [(n * side // count, -(-(n + 1) * side // count)) for n in range(count)]
        maps = torch.cat(
            [maps.narrow(dim, start, end - start).mean(dim, keepdim=True) for start, end in edges], dim
        )
    return maps
