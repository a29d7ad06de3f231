"""Transformer blocks on the cells of a map; part of the modules that are discarded after training."""

from __future__ import annotations

import math

from timm.models.vision_transformer import Block
from torch import Tensor, nn
from typing_extensions import override


class MapTransformer(nn.Module):
    """Apply pre-norm transformer blocks to the cells of a map.

    Args:
        channels: Channels of the map.
        heads: The most attention heads; the number used is the greatest common divisor with `channels`.
        count: The number of blocks.
    """

    def __init__(self, channels: int, heads: int, count: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block(channels, math.gcd(channels, heads)) for _ in range(count)))

    @override
    def forward(self, maps: Tensor) -> Tensor:
        """Let every cell attend to every other cell of its map.

        Args:
            maps: (B, C, H, W).

        Returns:
            (B, C, H, W).
        """
        return tokens_to_map(self.blocks(map_to_tokens(maps)), (maps.shape[-2], maps.shape[-1]))


def map_to_tokens(maps: Tensor) -> Tensor:
    """Arrange the cells of a map as tokens, row by row.

    Args:
        maps: (B, C, H, W).

    Returns:
        (B, H*W, C), a view.
    """
    return maps.flatten(2).transpose(1, 2)


def tokens_to_map(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """Arrange tokens, row by row, as the cells of a map.

    Args:
        tokens: (B, H*W, C).
        size: (H, W).

    Returns:
        (B, C, H, W), a view.
    """
    return tokens.transpose(1, 2).reshape(len(tokens), tokens.shape[2], *size)
