"""Maps brought to another size by exact areas."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

Size = tuple[int, int]


def smaller(one: Size, other: Size) -> Size:
    """The smaller height and the smaller width of two sizes."""
    return min(one[0], other[0]), min(one[1], other[1])


def area_weights(target: int, source: int) -> Tensor:
    """(target, source) float32: the share of pixel i of `target` that lies on pixel j of `source`, when
    both rows of pixels cover the same length. Rows sum to 1.

    In whole numbers: along a side of target * source units, a target pixel is `source` units long."""
    own, other = torch.arange(target)[:, None], torch.arange(source)[None, :]
    low = torch.maximum(own * source, other * target)
    high = torch.minimum((own + 1) * source, (other + 1) * target)
    return (high - low).clamp_min(0).float() / source


class AreaResample(nn.Module):
    """(B, C, *source) -> (B, C, *target): each pixel is the mean of what it covers, by exact area.

    Reducing averages, and every source pixel counts equally whatever the ratio (adaptive pooling
    counts some twice where sizes do not divide). Enlarging by a whole factor repeats pixels.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, source: Size, target: Size) -> None:
        super().__init__()
        self.source, self.target = source, target
        divides = source[0] % target[0] == 0 and source[1] % target[1] == 0
        self.kernel = (source[0] // target[0], source[1] // target[1]) if divides else None
        if self.kernel is None:
            # One matrix product a side. Not saved: the two sizes tell them.
            self.register_buffer("rows", area_weights(target[0], source[0]), persistent=False)
            self.register_buffer("columns", area_weights(target[1], source[1]).T, persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        if self.kernel == (1, 1):
            return maps
        if self.kernel is not None:
            return functional.avg_pool2d(maps, self.kernel)
        return torch.matmul(torch.matmul(self.rows, maps), self.columns)

    def extra_repr(self) -> str:
        return f"{self.source} -> {self.target}"
