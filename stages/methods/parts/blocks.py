"""Parts of the networks that methods put beside the student: thrown away after the training."""

from __future__ import annotations

import math

from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation that a batch of one value a channel does not stop: where there is no variance
    to divide by, the running statistics serve, as in evaluation, and stay as they are."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training and input.numel() == input.shape[1]:
            return functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return super().forward(input)


def separable(inputs: int, outputs: int) -> nn.Sequential:
    """(B, inputs, H, W) -> (B, outputs, ceil(H/2), ceil(W/2)): twice depthwise 3x3, 1x1, batch norm and
    ReLU, the first of stride 2, as OFA-KD's branches have it."""
    layers: list[nn.Module] = []
    for stride, wanted in ((2, inputs), (1, outputs)):
        layers += [
            nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
            nn.Conv2d(inputs, wanted, 1, bias=False),
            BatchNorm(wanted),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)


class MapBlocks(nn.Module):
    """Pre-norm transformer blocks over the cells of a map: (B, C, H, W) -> the same shape."""

    def __init__(self, channels: int, heads: int, count: int) -> None:
        """heads: at most so many; the greatest common divisor with the channels."""
        super().__init__()
        self.blocks = nn.Sequential(*(Block(channels, math.gcd(channels, heads)) for _ in range(count)))

    def forward(self, maps: Tensor) -> Tensor:
        return cells_as_map(self.blocks(map_as_cells(maps)), (maps.shape[-2], maps.shape[-1]))


def map_as_cells(maps: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H*W, C), row by row."""
    return maps.flatten(2).transpose(1, 2)


def cells_as_map(cells: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, H*W, C), row by row -> (B, C, H, W)."""
    return cells.transpose(1, 2).unflatten(2, size)
