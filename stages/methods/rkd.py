"""RKD: relational knowledge distillation.

Source: W. Park et al., CVPR 2019 (arXiv 1904.05068). With f_i the pooled vector of image i, of N:

    d_ij  = |f_i - f_j| / m               m: the mean distance of all pairs of different points
    c_jik = <f_i - f_j, f_k - f_j> / (|f_i - f_j| |f_k - f_j|)        the angle at j between i and k
    L     = distance_weight mean_ij h(d_ij^S, d_ij^T) + angle_weight mean_jik h(c_jik^S, c_jik^T)

h is Huber's loss with threshold 1. The means cover all N^2 pairs and N^3 triples, including those that
contain an image twice, like the public code of later comparisons (mdistiller), which is also the source
of the weights. Relations are those of the whole batch of all processes.

The lengths of the networks' vectors may differ: the loss compares only relations. Both relations are
computed from the N x N products of the vectors, so no N x N x D differences are needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, autocast
from torch.nn import functional
from typing_extensions import override

from stages.methods.base import Batch, Method
from stages.methods.parts.argument_checks import require_at_least, require_positive_weight
from stages.methods.parts.gathering import gather, gather_with_gradient, rank_and_world_size
from stages.models.features import Features, FeatureSpec

ROUNDING = 1e-6
"""Two vectors are the same point if their squared distance is below this share of their squared lengths,
or their distance below this share of the vectors' distance from 0: the difference is a rounding error."""


class Rkd(Method):
    """Match the teacher's distances between two images and angles among three images.

    The loss is given in the module's equation. Learns nothing of its own.

    Args:
        student: The student's shapes.
        teacher: The teacher's shapes.
        distance_weight: Weight of the distances.
        angle_weight: Weight of the angles.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> import timm, torch
        >>> from stages.methods.observed import run_networks
        >>> from stages.methods.rkd import Rkd
        >>> from stages.models.observer import Observer
        >>> student = Observer(timm.create_model("test_byobnet"), Rkd.needs())
        >>> teacher = Observer(timm.create_model("test_resnet"), Rkd.needs()).eval()
        >>> method = Rkd(student.spec(64, 3), teacher.spec(64, 3), angle_weight=20.0)
        >>> images, labels = torch.rand(4, 3, 64, 64), torch.tensor([1, 0, 2, 1])
        >>> loss = method(*run_networks(student, teacher, images, labels))
        >>> loss.backward()
    """

    name = "rkd"

    def __init__(
        self,
        student: FeatureSpec,
        teacher: FeatureSpec,
        *,
        distance_weight: float = 25.0,
        angle_weight: float = 50.0,
    ) -> None:
        super().__init__(student, teacher)
        require_at_least(0.0, distance_weight=distance_weight, angle_weight=angle_weight)
        require_positive_weight(distance_weight=distance_weight, angle_weight=angle_weight)
        self.distance_weight, self.angle_weight = distance_weight, angle_weight

    @override
    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """Compute the loss of one step; see `Method.forward`.

        With several processes each computes the angles at its own images, and every process must hold
        the same number of images.
        """
        images, rank = len(student.embedding), rank_and_world_size()[0]
        local_images = slice(rank * images, (rank + 1) * images)
        with autocast(student.embedding.device.type, enabled=False):
            student_relations = _relations(gather_with_gradient(student.embedding.float()))
            teacher_relations = _relations(gather(teacher.embedding.float()))
            loss = student.embedding.new_zeros((), dtype=torch.float32)
            if self.distance_weight > 0.0:
                distances = functional.smooth_l1_loss(
                    student_relations.distances(), teacher_relations.distances()
                )
                loss = loss + self.distance_weight * distances
            if self.angle_weight > 0.0:
                angles = functional.smooth_l1_loss(
                    student_relations.cosines(local_images), teacher_relations.cosines(local_images)
                )
                loss = loss + self.angle_weight * angles
        return loss


@dataclass(frozen=True)
class _Relations:
    """Relations of N vectors, all (N, N).

    Args:
        products: Inner products of the vectors minus their mean.
        lengths: Distances, with 1 where two vectors are the same point.
        apart: Whether two vectors are different points.
    """

    products: Tensor
    lengths: Tensor
    apart: Tensor

    def distances(self) -> Tensor:
        """Compute d_ij, (N, N): 0 for the same point, and everywhere if there is only one point."""
        lengths = torch.where(self.apart, self.lengths, 0.0)
        pairs = self.apart.sum()
        mean = torch.where(pairs > 0, lengths.sum() / pairs.clamp_min(1), 1.0)
        return lengths / mean

    def cosines(self, at: slice) -> Tensor:
        """Compute c_jik, (A, N, N), for the images j of `at`; 0 where i or k is the point of j."""
        products, inverse = self.products, torch.where(self.apart, 1.0 / self.lengths, 0.0)[at]
        with_vertex = products[at]
        squares = products.diagonal()[at]
        inner = products - with_vertex[:, :, None] - with_vertex[:, None, :] + squares[:, None, None]
        return inner * inverse[:, :, None] * inverse[:, None, :]


def _relations(vectors: Tensor) -> _Relations:
    """Compute the relations of vectors (N, D) float32."""
    # Around their mean, so that the differences of products lose few digits.
    centered = vectors - vectors.mean(0)
    products = centered @ centered.T
    squares = products.diagonal()
    sums = squares[:, None] + squares
    squared = sums - 2.0 * products
    apart = squared > ROUNDING * sums + ROUNDING**2 * vectors.detach().square().sum(1).mean()
    # Inside the root, not after it: the root of 0 has no gradient.
    return _Relations(products, torch.where(apart, squared, 1.0).sqrt(), apart)
