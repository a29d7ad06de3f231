"""The squared distance of two maps at several scales."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

LEVELS = (4, 2, 1)
"""Cells per axis of the pooled levels."""


def pyramid_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute ReviewKD's hierarchical context loss ("HCL") of two maps of one shape.

    Source: Chen et al., 2021. With P_l the average pooling to l x l cells, the levels l = full, 4, 2, 1
    and the weights 1, 1/2, 1/4, 1/8:

        L = sum over levels of weight * mean((P_l(student) - P_l(teacher))^2) / sum of the weights

    The weights apply to the levels in use, in order. A side shorter than l keeps its cells, and a level
    that would not change the map is skipped. (The official code compares only the map's height, which
    is the same for square maps.) Cells are those of adaptive pooling, like in that code: they overlap
    where l does not divide the side.

    Args:
        student: (B, C, H, W) of any float dtype.
        teacher: (B, C, H, W). It may carry a gradient; detach it where it must not.

    Returns:
        A float32 scalar.
    """
    with torch.autocast(student.device.type, enabled=False):
        # Pooling is linear, so one map is pooled instead of two.
        gap = student.float() - teacher.float()
        height, width = gap.shape[-2:]
        loss, weight, total = gap.square().mean(), 1.0, 1.0
        for level in LEVELS:
            cells = min(level, height), min(level, width)
            if cells == (height, width):
                continue
            weight /= 2.0
            total += weight
            loss = loss + weight * _adaptive_average(gap, cells).square().mean()
        return loss / total


def _adaptive_average(maps: Tensor, cells: tuple[int, int]) -> Tensor:
    """Pool (B, C, H, W) to (B, C, *cells); the gradient is deterministic on a GPU (torch's is not)."""
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
