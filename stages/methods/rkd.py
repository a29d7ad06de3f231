"""RKD: relational knowledge distillation.

W. Park et al., CVPR 2019 (arXiv 1904.05068). With f_i the pooled vector of image i, of N:

    d_ij  = |f_i - f_j| / m               m: the mean distance of all pairs of different points
    c_jik = <f_i - f_j, f_k - f_j> / (|f_i - f_j| |f_k - f_j|)        the angle at j between i and k
    L     = distance_weight mean_ij h(d_ij^S, d_ij^T) + angle_weight mean_jik h(c_jik^S, c_jik^T)

h is Huber's loss with threshold 1. The means run over all N^2 pairs and N^3 triples, those with an image
twice among them, as in the public code of later comparisons (mdistiller); the weights too are theirs.
Relations are those of the whole batch, that of all processes.

The vectors' lengths may differ: only relations meet. Both relations come from the N x N products of the
vectors, so that no N x N x D differences are needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, autocast
from torch.nn import functional

from stages.methods.base import Batch, Method
from stages.methods.parts.gathering import gather, gather_with_gradient, place
from stages.methods.settings import RkdSettings
from stages.models.features import Features, FeatureSpec

ROUNDING = 1e-6
"""A squared distance below this share of both vectors' squared lengths, or a distance below this share
of how far the vectors are from 0, is rounding: the two are one point."""


class Rkd(Method):
    """The loss of the module's equations."""

    name = "rkd"

    def __init__(self, settings: RkdSettings, student: FeatureSpec, teacher: FeatureSpec) -> None:
        super().__init__(settings, student, teacher)
        self.settings = settings

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """As `Method.forward`. With several processes each looks at the angles at its own images, and
        every process must hold equally many."""
        settings = self.settings
        images, rank = len(student.embedding), place()[0]
        own = slice(rank * images, (rank + 1) * images)
        with autocast(student.embedding.device.type, enabled=False):
            ours = _points(gather_with_gradient(student.embedding.float()))
            theirs = _points(gather(teacher.embedding.float()))
            loss = student.embedding.new_zeros((), dtype=torch.float32)
            if settings.distance_weight > 0.0:
                distances = functional.smooth_l1_loss(ours.distances(), theirs.distances())
                loss = loss + settings.distance_weight * distances
            if settings.angle_weight > 0.0:
                angles = functional.smooth_l1_loss(ours.cosines(own), theirs.cosines(own))
                loss = loss + settings.angle_weight * angles
        return loss


@dataclass(frozen=True)
class _Points:
    """N vectors by their products, (N, N): of the vectors less their mean; their distances, with 1 where
    two are one point; and whether they are two points."""

    products: Tensor
    lengths: Tensor
    apart: Tensor

    def distances(self) -> Tensor:
        """(N, N): d_ij; 0 for one point, and everywhere where there is only one."""
        lengths = torch.where(self.apart, self.lengths, 0.0)
        pairs = self.apart.sum()
        mean = torch.where(pairs > 0, lengths.sum() / pairs.clamp_min(1), 1.0)
        return lengths / mean

    def cosines(self, at: slice) -> Tensor:
        """(A, N, N): c_jik for the images j of `at`; 0 where i or k is j's point."""
        products, inverse = self.products, torch.where(self.apart, 1.0 / self.lengths, 0.0)[at]
        towards = products[at]
        squares = products.diagonal()[at]
        inner = products - towards[:, :, None] - towards[:, None, :] + squares[:, None, None]
        return inner * inverse[:, :, None] * inverse[:, None, :]


def _points(vectors: Tensor) -> _Points:
    """(N, D) float32 -> what their relations need."""
    # Around their mean, so that the differences of products lose few digits.
    centred = vectors - vectors.mean(0)
    products = centred @ centred.T
    squares = products.diagonal()
    both = squares[:, None] + squares
    squared = both - 2.0 * products
    apart = squared > ROUNDING * both + ROUNDING**2 * vectors.detach().square().sum(1).mean()
    # Within the root, not after it: the root of 0 has no gradient.
    return _Points(products, torch.where(apart, squared, 1.0).sqrt(), apart)
