"""Contrastive losses within a batch: which teacher vector belongs to a student vector.

Vectors are (B, M, D) float32 of unit length: B images, M windows, D channels. Every loss is a softmax
over candidates, one of which is the positive. A mask is True where a candidate is not a negative; its
similarity becomes -inf, but never that of the positive. A row therefore always has a candidate.
"""

from __future__ import annotations

import torch
from torch import Tensor

MIN_LENGTH = 1e-6
"""Shorter vectors have no direction."""


def unit_vectors(vectors: Tensor, dim: int = -1) -> Tensor:
    """Scale vectors to length 1.

    Args:
        vectors: Any shape, floating point.
        dim: The dimension along which a vector extends.

    Returns:
        The same shape; vectors shorter than `MIN_LENGTH` become 0 and get no gradient.
    """
    length = torch.linalg.vector_norm(vectors, dim=dim, keepdim=True)
    return torch.where(length > MIN_LENGTH, vectors / length.clamp_min(MIN_LENGTH), 0.0)


def sample_wise_losses(
    anchors: Tensor, candidates: Tensor, temperature: Tensor | float, offset: int, mask: Tensor | None
) -> Tensor:
    """Contrast each image with the other images at the same window.

    A[m,i,j] = <anchor[i,m], candidate[j,m]> / temperature; the loss at (i, m) is
    -log softmax_j(A[m,i,:])[offset + i].

    Args:
        anchors: (B, M, D).
        candidates: (N, M, D) of all processes.
        temperature: Divisor of the similarities.
        offset: Index of the first anchor's positive among the candidates.
        mask: (M or 1, B, N) bool, True where a candidate is not a negative; or None.

    Returns:
        (B, M).
    """
    similarity = torch.matmul(anchors.transpose(0, 1), candidates.permute(1, 2, 0)) / temperature
    return _losses_of_positives(similarity, offset, mask).transpose(0, 1)


def joint_sample_wise_losses(
    anchors: Tensor, candidates: Tensor, temperature: Tensor | float, offset: int, mask: Tensor | None
) -> Tensor:
    """Contrast each window of each image with all windows of all images.

    Args:
        anchors: (B, M, D).
        candidates: (N, M, D) of all processes.
        temperature: Divisor of the similarities.
        offset: Index of the first anchor image among the candidate images.
        mask: (B * M, N * M) bool, True where a candidate is not a negative; or None.

    Returns:
        (B, M).
    """
    images, regions, _ = anchors.shape
    similarity = torch.matmul(anchors.flatten(0, 1), candidates.flatten(0, 1).T) / temperature
    return _losses_of_positives(similarity, offset * regions, mask).view(images, regions)


def feature_wise_losses(
    anchors: Tensor, candidates: Tensor, temperature: Tensor | float, mask: Tensor | None
) -> Tensor:
    """Contrast each window with the other windows of the same image.

    G[i,m,n] = <anchor[i,m], candidate[i,n]> / temperature; the loss at (i, m) is
    -log softmax_n(G[i,m,:])[m].

    Args:
        anchors: (B, M, D).
        candidates: (B, M, D).
        temperature: Divisor of the similarities.
        mask: (B or 1, M, M) bool, True where a candidate is not a negative; or None.

    Returns:
        (B, M).
    """
    similarity = torch.matmul(anchors, candidates.transpose(1, 2)) / temperature
    return _losses_of_positives(similarity, 0, mask)


def channel_wise_losses(
    anchors: Tensor, candidates: Tensor, temperature: Tensor | float, weights: Tensor
) -> Tensor:
    """Contrast each channel with the other channels.

    A channel is the column of its values over all windows of all images. The similarity of two columns
    is their weighted Pearson correlation.

    Args:
        anchors: (N, M, D).
        candidates: (N, M, D).
        temperature: Divisor of the correlations.
        weights: (N, M), the weight of each window.

    Returns:
        (D,).
    """
    left, right = (_standardized_columns(vectors, weights) for vectors in (anchors, candidates))
    return _losses_of_positives(torch.matmul(left.T, right) / temperature, 0, None)


def _standardized_columns(vectors: Tensor, weights: Tensor) -> Tensor:
    """Bring the columns of (N, M, D), as (N * M, D), to weighted mean 0 and length 1."""
    rows, share = vectors.flatten(0, 1), (weights / weights.sum()).flatten()[:, None]
    return unit_vectors((rows - (rows * share).sum(0)) * share.sqrt(), dim=0)


def _losses_of_positives(similarity: Tensor, offset: int, mask: Tensor | None) -> Tensor:
    """Compute -log softmax of the positives: (..., A, N) -> (..., A).

    The positive of row a is in column offset + a.
    """
    rows = similarity.shape[-2]
    if mask is not None:
        columns = torch.arange(similarity.shape[-1], device=similarity.device)
        positive = columns == columns[offset : offset + rows, None]
        similarity = similarity.masked_fill(mask & ~positive, -torch.inf)
    log_probability = torch.log_softmax(similarity, dim=-1)
    return -log_probability[..., offset : offset + rows].diagonal(dim1=-2, dim2=-1)
