"""Resampling of maps by exact areas."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

Size = tuple[int, int]
"""Height and width, pixels."""


def smaller(first: Size, second: Size) -> Size:
    """Return the smaller height and the smaller width of two sizes."""
    return min(first[0], second[0]), min(first[1], second[1])


def area_weights(target: int, source: int) -> Tensor:
    """Return the overlaps of two rows of pixels that cover the same length.

    The computation is in integers: on a side of target * source units, a target pixel is `source` units long.

    Args:
        target: Pixels of the target row.
        source: Pixels of the source row.

    Returns:
        (target, source), float32: the share of target pixel i that overlaps source pixel j. Rows sum to 1.
    """
    own, other = torch.arange(target)[:, None], torch.arange(source)[None, :]
    low = torch.maximum(own * source, other * target)
    high = torch.minimum((own + 1) * source, (other + 1) * target)
    return (high - low).clamp_min(0).float() / source


class AreaResample(nn.Module):
    """Area resampling, (B, C, *source) -> (B, C, *target): each pixel is the mean of the area that it covers.

    When reducing, every source pixel counts equally for any ratio (adaptive pooling counts some pixels
    twice if the sizes do not divide). Enlarging by an integer factor repeats pixels.

    Args:
        source: Height and width of the input maps.
        target: Height and width of the output maps.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, source: Size, target: Size) -> None:
        super().__init__()
        self.source, self.target = source, target
        divides = source[0] % target[0] == 0 and source[1] % target[1] == 0
        self.kernel = (source[0] // target[0], source[1] // target[1]) if divides else None
        if self.kernel is None:
            # One matrix product for each side. Not saved: they follow from the two sizes.
            self.register_buffer("rows", area_weights(target[0], source[0]), persistent=False)
            self.register_buffer("columns", area_weights(target[1], source[1]).T, persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Resample the maps."""
        if self.kernel == (1, 1):
            return maps
        if self.kernel is not None:
            return functional.avg_pool2d(maps, self.kernel)
        return torch.matmul(torch.matmul(self.rows, maps), self.columns)

    def extra_repr(self) -> str:
        """Return the two sizes."""
        return f"{self.source} -> {self.target}"
