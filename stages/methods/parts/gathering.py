"""Rows of the whole batch, where several processes hold a part of it each.

Every process must hold the same number of rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed


def place() -> tuple[int, int]:
    """(this process's rank, number of processes); (0, 1) when torch.distributed is not in use."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def gather(rows: Tensor) -> Tensor:
    """(B, ...) -> (world * B, ...), in order of rank, without gradient."""
    return _all_gather(rows.detach()) if place()[1] > 1 else rows.detach()


def gather_with_gradient(rows: Tensor) -> Tensor:
    """(B, ...) -> (world * B, ...); the gradient of every process's loss reaches the rows it came from.

    It is the gradient of the *sum* of the processes' losses; the mean over processes that
    DistributedDataParallel takes of the parameters' gradients makes it that of their mean.
    """
    return _Gather.apply(rows) if place()[1] > 1 else rows


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return _all_gather(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        distributed.all_reduce(total)
        rank, world = place()
        return total.chunk(world)[rank]


def _all_gather(rows: Tensor) -> Tensor:
    rows = rows.contiguous()
    parts = [torch.empty_like(rows) for _ in range(place()[1])]
    distributed.all_gather(parts, rows)
    return torch.cat(parts)
