"""Region-aware attention: each stage of the student may look at what its other stages see.

After PAT (ICCV 2025, arXiv 2501.08885; official code). There the position encoding is indexed by
the image's place in the batch; ours by the token's, as an encoding is meant to be.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.methods.parts.blocks import BatchNorm, cells_as_map, map_as_cells
from stages.methods.parts.ends import Shape
from stages.models.resampling import AreaResample


class RegionAttention(nn.Module):
    """Maps (B, C_n, H_n, W_n) of some ends -> maps of the shapes wanted, one for each.

    Each end becomes grid x grid tokens of `width` channels, which all attend to each other once and are
    then dealt out again; each end's own tokens are projected to the wanted channels and size.
    """

    positions: Tensor

    def __init__(self, given: list[Shape], wanted: list[Shape], grid: int, width: int, heads: int) -> None:
        super().__init__()
        self.grid, self.heads = grid, heads
        self.embeddings = nn.ModuleList(_embedding(shape, grid, width) for shape in given)
        self.norm = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.projections = nn.ModuleList(_projection(grid, width, shape) for shape in wanted)
        positions = sinusoids(len(given) * grid**2, width)
        self.register_buffer("positions", positions, persistent=False)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        parts = [map_as_cells(embed(end)) for embed, end in zip(self.embeddings, maps, strict=True)]
        queries, keys, values = self.queries_keys_values(self.norm(torch.cat(parts, 1))).chunk(3, dim=-1)
        positions = self.positions.to(queries.dtype)
        attended = functional.scaled_dot_product_attention(
            self._by_head(queries + positions), self._by_head(keys + positions), self._by_head(values)
        )
        regions = attended.transpose(1, 2).flatten(2).chunk(len(maps), dim=1)
        size = (self.grid, self.grid)
        return [
            project(cells_as_map(region, size))
            for project, region in zip(self.projections, regions, strict=True)
        ]

    def _by_head(self, tokens: Tensor) -> Tensor:
        """(B, N, width) -> (B, heads, N, width / heads)."""
        return tokens.unflatten(2, (self.heads, -1)).transpose(1, 2)


def sinusoids(count: int, width: int) -> Tensor:
    """(count, width) float32: sin and cos in turns, of wavelengths 2 pi to 20000 pi (Vaswani et al., 2017,
    section 3.5)."""
    place = torch.arange(count)[:, None]
    angle = place / 10000 ** (torch.arange(0, width, 2) / width)
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)[:, :width]


def _embedding(shape: Shape, grid: int, width: int) -> nn.Module:
    """(B, C, H, W) -> (B, width, grid, grid): one linear layer on each patch, the map stretched to whole
    patches where they do not divide it."""
    channels, height, width_of_map = shape
    patch = -(-height // grid), -(-width_of_map // grid)
    return nn.Sequential(
        AreaResample((height, width_of_map), (grid * patch[0], grid * patch[1])),
        nn.Conv2d(channels, width, patch, patch),
    )


def _projection(grid: int, width: int, shape: Shape) -> nn.Module:
    """(B, width, grid, grid) -> (B, C, H, W). Resized last: that is linear too, and tokens are fewer."""
    channels, height, width_of_map = shape
    return nn.Sequential(
        BatchNorm(width),
        nn.Conv2d(width, channels, 1, bias=False),
        AreaResample((grid, grid), (height, width_of_map)),
    )
