"""Rows of the whole batch when several processes hold a part of it each.

Every process must hold the same number of rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed
from typing_extensions import override


def rank_and_world_size() -> tuple[int, int]:
    """Return this process's rank and the number of processes.

    Returns:
        (rank, world size); (0, 1) when torch.distributed is not in use.
    """
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def gather(rows: Tensor) -> Tensor:
    """Collect the rows of all processes without gradient.

    Args:
        rows: (B, ...).

    Returns:
        (world size * B, ...) in order of rank, detached.
    """
    return _all_gather(rows.detach()) if rank_and_world_size()[1] > 1 else rows.detach()


def gather_with_gradient(rows: Tensor) -> Tensor:
    """Collect the rows of all processes; the gradients of all processes' losses reach their rows.

    The gradient is that of the *sum* of the processes' losses. DistributedDataParallel divides the
    parameters' gradients by the number of processes, so it becomes that of their mean.

    Args:
        rows: (B, ...).

    Returns:
        (world size * B, ...) in order of rank.
    """
    if rank_and_world_size()[1] == 1:
        return rows
    gathered: Tensor = _GatherWithGradient.apply(rows)
    return gathered


class _GatherWithGradient(torch.autograd.Function):
    @staticmethod
    @override
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return _all_gather(rows)

    @staticmethod
    @override
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        distributed.all_reduce(total)
        rank, world = rank_and_world_size()
        return total.chunk(world)[rank]


def _all_gather(rows: Tensor) -> Tensor:
    rows = rows.contiguous()
    parts = [torch.empty_like(rows) for _ in range(rank_and_world_size()[1])]
    distributed.all_gather(parts, rows)
    return torch.cat(parts)
