"""Contrastive losses within a batch: which student vector belongs to which teacher vector.

Vectors are (B, M, D): B images, M windows, D channels, of unit length, float32. Every loss is a
softmax over candidates of which one is the positive. A mask is True where a candidate is no
negative; it is added as -inf, and never reaches the positive: so no row is ever empty, whatever
the mask.
"""

from __future__ import annotations

import torch
from torch import Tensor

SHORTEST = 1e-6
"""Vectors shorter than this have no direction."""


def unit(vectors: Tensor, dim: int = -1) -> Tensor:
    """The vectors at length 1 along `dim`; those without a direction become 0 and take no gradient."""
    length = torch.linalg.vector_norm(vectors, dim=dim, keepdim=True)
    return torch.where(length > SHORTEST, vectors / length.clamp_min(SHORTEST), 0.0)


def sample_wise(
    anchors: Tensor, candidates: Tensor, temperature: Tensor | float, offset: int, mask: Tensor | None
) -> Tensor:
    """Each image against the others at the same window: (B, M, D), (N, M, D) -> losses (B, M).

    A[m,i,j] = <anchor[i,m], candidate[j,m]> / temperature; the loss at (i, m) is
    -log softmax_j(A[m,i,:])[offset + i]. mask: (M or 1, B, N).
    """
    similarity = torch.matmul(anchors.transpose(0, 1), candidates.permute(1, 2, 0)) / temperature
    return _loss_of_positives(similarity, offset, mask).transpose(0, 1)


def sample_wise_joint(
    anchors: Tensor, candidates: Tensor, temperature: Tensor | float, offset: int, mask: Tensor | None
) -> Tensor:
    """Each window of each image against all windows of all images: -> losses (B, M).

    mask: (B * M, N * M).
    """
    images, regions, _ = anchors.shape
    similarity = torch.matmul(anchors.flatten(0, 1), candidates.flatten(0, 1).T) / temperature
    return _loss_of_positives(similarity, offset * regions, mask).view(images, regions)


def feature_wise(
    anchors: Tensor, candidates: Tensor, temperature: Tensor | float, mask: Tensor | None
) -> Tensor:
    """Each window against the others of the same image: (B, M, D), (B, M, D) -> losses (B, M).

    G[i,m,n] = <anchor[i,m], candidate[i,n]> / temperature; the loss at (i, m) is
    -log softmax_n(G[i,m,:])[m]. mask: (B or 1, M, M).
    """
    similarity = torch.matmul(anchors, candidates.transpose(1, 2)) / temperature
    return _loss_of_positives(similarity, 0, mask)


def channel_wise(anchors: Tensor, candidates: Tensor, temperature: Tensor | float, weights: Tensor) -> Tensor:
    """Each channel against the other channels: (N, M, D), (N, M, D), weights (N, M) -> losses (D,).

    A channel is the column of its values over all windows of all images; two columns are as similar
    as their weighted Pearson correlation is high.
    """
    left, right = (_columns(vectors, weights) for vectors in (anchors, candidates))
    return _loss_of_positives(torch.matmul(left.T, right) / temperature, 0, None)


def _columns(vectors: Tensor, weights: Tensor) -> Tensor:
    """(N, M, D) -> (N * M, D): columns of weighted mean 0 and length 1."""
    rows, share = vectors.flatten(0, 1), (weights / weights.sum()).flatten()[:, None]
    return unit((rows - (rows * share).sum(0)) * share.sqrt(), dim=0)


def _loss_of_positives(similarity: Tensor, offset: int, mask: Tensor | None) -> Tensor:
    """(..., A, N) -> (..., A): the positive of row a stands in column offset + a."""
    rows = similarity.shape[-2]
    if mask is not None:
        columns = torch.arange(similarity.shape[-1], device=similarity.device)
        positive = columns == columns[offset : offset + rows, None]
        similarity = similarity.masked_fill(mask & ~positive, -torch.inf)
    log_probability = torch.log_softmax(similarity, dim=-1)
    return -log_probability[..., offset : offset + rows].diagonal(dim1=-2, dim2=-1)
