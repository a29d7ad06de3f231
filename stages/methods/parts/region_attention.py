"""Region-aware attention: tokens of all the student's stage ends attend to each other.

Source: PAT (ICCV 2025, arXiv 2501.08885), official code. There the position encoding is indexed by the
image's position in the batch; ours is indexed by the token's position, which is its purpose.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from stages.methods.parts.batch_norm import SingleValueBatchNorm
from stages.methods.parts.map_transformer import map_to_tokens, tokens_to_map
from stages.methods.parts.stage_pairs import Shape
from stages.models.resampling import AreaResample


class RegionAttention(nn.Module):
    """Map the maps of several stage ends to maps of other shapes, with attention across the ends.

    Each end becomes grid x grid tokens of `width` channels. All tokens attend to each other once. Each
    end's tokens are then projected to the output's channels and size.

    Args:
        input_shapes: (C, H, W) of each input map.
        output_shapes: (C, H, W) of each output map, as many as input maps.
        grid: Tokens per axis of one end.
        width: Channels of a token.
        heads: Attention heads; a divisor of `width`.
    """

    positions: Tensor

    def __init__(
        self, input_shapes: Sequence[Shape], output_shapes: Sequence[Shape], grid: int, width: int, heads: int
    ) -> None:
        super().__init__()
        self.grid, self.heads = grid, heads
        self.embeddings = nn.ModuleList(_embedding(shape, grid, width) for shape in input_shapes)
        self.norm = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.projections = nn.ModuleList(_projection(grid, width, shape) for shape in output_shapes)
        positions = sinusoidal_positions(len(input_shapes) * grid**2, width)
        self.register_buffer("positions", positions, persistent=False)

    @override
    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Compute the output maps.

        Args:
            maps: (B, C, H, W) each, of the input shapes.

        Returns:
            (B, C, H, W) each, of the output shapes.
        """
        tokens = [map_to_tokens(embed(end)) for embed, end in zip(self.embeddings, maps, strict=True)]
        queries, keys, values = self.queries_keys_values(self.norm(torch.cat(tokens, 1))).chunk(3, dim=-1)
        positions = self.positions.to(queries.dtype)
        attended = functional.scaled_dot_product_attention(
            self._by_head(queries + positions), self._by_head(keys + positions), self._by_head(values)
        )
        regions = attended.transpose(1, 2).flatten(2).chunk(len(maps), dim=1)
        size = (self.grid, self.grid)
        return [
            project(tokens_to_map(region, size))
            for project, region in zip(self.projections, regions, strict=True)
        ]

    def _by_head(self, tokens: Tensor) -> Tensor:
        """Split the channels by head: (B, N, width) to (B, heads, N, width / heads)."""
        images, count, _ = tokens.shape
        return tokens.reshape(images, count, self.heads, -1).transpose(1, 2)


def sinusoidal_positions(count: int, width: int) -> Tensor:
    """Compute the position encoding of Vaswani et al. (2017), section 3.5.

    Args:
        count: The number of tokens.
        width: Channels of a token.

    Returns:
        (count, width) float32: sine and cosine alternate, with wavelengths from 2 pi to 20000 pi.
    """
    positions = torch.arange(count)[:, None]
    angle = positions / 10000 ** (torch.arange(0, width, 2) / width)
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)[:, :width]


def _embedding(shape: Shape, grid: int, width: int) -> nn.Module:
    """Build a patch embedding, (B, C, H, W) to (B, width, grid, grid).

    It is one linear layer on each patch; the map is resampled first if the patches do not divide it.
    """
    channels, map_height, map_width = shape
    patch = -(-map_height // grid), -(-map_width // grid)
    return nn.Sequential(
        AreaResample((map_height, map_width), (grid * patch[0], grid * patch[1])),
        nn.Conv2d(channels, width, patch, patch),
    )


def _projection(grid: int, width: int, shape: Shape) -> nn.Module:
    """Build the layers (B, width, grid, grid) to (B, C, H, W).

    The resampling comes last: it commutes with the convolution, and there are fewer tokens than pixels.
    """
    channels, map_height, map_width = shape
    return nn.Sequential(
        SingleValueBatchNorm(width),
        nn.Conv2d(width, channels, 1, bias=False),
        AreaResample((grid, grid), (map_height, map_width)),
    )
