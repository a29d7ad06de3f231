"""RSD: redundancy suppression distillation, in our reading.

Source: arXiv 2507.21844 (ICCV 2025). A description of its loss is available to us; its weights and the
expander's width are not. With the pooled vectors f_S (B, C_S) and f_T (B, C_T) of the whole batch:

    z      = adaptor( GELU( BN( expander(f_S) ) ) )            linear C_S -> expansion C_S, linear -> C_T
    P[c,d] = Pearson correlation of z[:,c] and f_T[:,d]        (C_T, C_T), over the B images, float32
    loss   = mean_c (P[c,c] - 1)^2 + kappa mean_{c != d} P[c,d]^2

kappa = 1 is our choice: both terms are means, so neither grows with C_T. (Barlow Twins, Zbontar et al.,
2021, sums both and multiplies the second by 0.005, which is a kappa of 0.005 (C_T - 1).) A channel that
does not vary over the batch has correlation 0 with every channel, and gets no gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from stages.methods.base import Batch, Method
from stages.methods.parts.argument_checks import require_above, require_at_least
from stages.methods.parts.contrastive_losses import unit_vectors
from stages.methods.parts.gathering import gather, gather_with_gradient
from stages.models.features import Features, FeatureSpec

BATCH_NORM_EPS = 1e-5


class Rsd(Method):
    """Bring the cross-correlation of the pooled vectors' channels to the identity.

    The loss is given in the module's equations. Learns expander, norm and adaptor.

    Args:
        student: The student's shapes.
        teacher: The teacher's shapes.
        kappa: Weight of the correlations between different channels.
        expansion: Width between expander and adaptor, as a multiple of the student's pooled vector.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> import timm, torch
        >>> from stages.methods.observed import run_networks
        >>> from stages.methods.rsd import Rsd
        >>> from stages.models.observer import Observer
        >>> student = Observer(timm.create_model("test_byobnet"), Rsd.needs())
        >>> teacher = Observer(timm.create_model("test_resnet"), Rsd.needs()).eval()
        >>> method = Rsd(student.spec(64, 3), teacher.spec(64, 3), kappa=0.5)
        >>> images, labels = torch.rand(4, 3, 64, 64), torch.tensor([1, 0, 2, 1])
        >>> loss = method(*run_networks(student, teacher, images, labels))
        >>> loss.backward()
    """

    name = "rsd"

    def __init__(
        self, student: FeatureSpec, teacher: FeatureSpec, *, kappa: float = 1.0, expansion: float = 2.0
    ) -> None:
        super().__init__(student, teacher)
        require_at_least(0.0, kappa=kappa)
        require_above(0.0, expansion=expansion)
        self.kappa = kappa
        width = max(1, round(expansion * student.embedding))
        # No biases: the norm has a shift, and the correlation subtracts the mean.
        self.expander = nn.Linear(student.embedding, width, bias=False)
        self.norm_scale = nn.Parameter(torch.ones(width))
        self.norm_shift = nn.Parameter(torch.zeros(width))
        self.adaptor = nn.Linear(width, teacher.embedding, bias=False)

    @override
    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """Compute the loss of one step; see `Method.forward`.

        With several processes each returns the loss of the whole batch, and the mean over processes is
        the loss. Every process must hold the same number of images.
        """
        with torch.autocast(student.embedding.device.type, enabled=False):
            all_student_vectors = gather_with_gradient(student.embedding.float())
            expanded = functional.gelu(self._batch_norm(self.expander(all_student_vectors)))
            adapted, all_teacher_vectors = self.adaptor(expanded), gather(teacher.embedding.float())
            correlation = torch.matmul(
                standardized_columns(adapted).T, standardized_columns(all_teacher_vectors)
            )
            equal_channels = correlation.diagonal()
            pairs = max(1, correlation.numel() - len(equal_channels))
            off_diagonal = correlation - torch.diag(equal_channels)
            different_channels = off_diagonal.square().sum() / pairs
            return (equal_channels - 1.0).square().mean() + self.kappa * different_channels

    def _batch_norm(self, vectors: Tensor) -> Tensor:
        """Normalize with the statistics of the batch, also in evaluation and for a batch of one."""
        variance, mean = torch.var_mean(vectors, dim=0, correction=0)
        return (vectors - mean) * (variance + BATCH_NORM_EPS).rsqrt() * self.norm_scale + self.norm_shift


def standardized_columns(vectors: Tensor) -> Tensor:
    """Bring each channel to mean 0 and length 1 over the batch.

    Args:
        vectors: (B, C) float32.

    Returns:
        (B, C); 0 where a channel does not vary.
    """
    return unit_vectors(vectors - vectors.mean(0), dim=0)
