"""RSD: redundancy suppression distillation, in our reading.

arXiv 2507.21844 (ICCV 2025). Public to us is a description of its loss; its weights and the expander's
width are not. With the pooled vectors f_S (B, C_S) and f_T (B, C_T) of the whole batch:

    z      = adaptor( GELU( BN( expander(f_S) ) ) )            linear C_S -> expansion C_S, linear -> C_T
    P[c,d] = Pearson correlation of z[:,c] and f_T[:,d]        (C_T, C_T), over the B images, float32
    loss   = mean_c (P[c,c] - 1)^2 + kappa mean_{c != d} P[c,d]^2

kappa = 1 is our choice: both terms are means, so that neither grows with C_T. (Barlow Twins, Zbontar et al.,
2021, sums both and weighs the second by 0.005, which is a kappa of 0.005 (C_T - 1).) A channel that
does not vary over the batch correlates with nothing: P = 0, and it takes no gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.methods.base import Batch, Method
from stages.methods.parts.contrast import unit
from stages.methods.parts.gathering import gather, gather_with_gradient
from stages.methods.settings import RsdSettings
from stages.models.features import Features, FeatureSpec

BATCH_NORM_EPS = 1e-5


class Rsd(Method):
    """The loss of the module's equations. Learns expander, norm and adaptor."""

    name = "rsd"

    def __init__(self, settings: RsdSettings, student: FeatureSpec, teacher: FeatureSpec) -> None:
        super().__init__(settings, student, teacher)
        self.settings = settings
        width = max(1, round(settings.expansion * student.embedding))
        # The norm has a shift of its own, and the correlation takes off the mean.
        self.expander = nn.Linear(student.embedding, width, bias=False)
        self.norm_scale = nn.Parameter(torch.ones(width))
        self.norm_shift = nn.Parameter(torch.zeros(width))
        self.adaptor = nn.Linear(width, teacher.embedding, bias=False)

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """As `Method.forward`. With several processes each gives the loss of the whole batch, whose
        mean over processes is the loss; every process must hold equally many images."""
        with torch.autocast(student.embedding.device.type, enabled=False):
            of_all = gather_with_gradient(student.embedding.float())
            expanded = functional.gelu(self._normalised(self.expander(of_all)))
            ours, theirs = self.adaptor(expanded), gather(teacher.embedding.float())
            correlation = torch.matmul(columns(ours).T, columns(theirs))
            equal = correlation.diagonal()
            pairs = max(1, correlation.numel() - len(equal))
            different = (correlation - torch.diag(equal)).square().sum() / pairs
            return (equal - 1.0).square().mean() + self.settings.kappa * different

    def _normalised(self, vectors: Tensor) -> Tensor:
        """BN by the batch alone: it is never judged by running statistics, and takes a batch of one."""
        variance, mean = torch.var_mean(vectors, dim=0, correction=0)
        return (vectors - mean) * (variance + BATCH_NORM_EPS).rsqrt() * self.norm_scale + self.norm_shift


def columns(vectors: Tensor) -> Tensor:
    """(B, C) -> the same at mean 0 and length 1 over the batch; 0 where a channel does not vary."""
    return unit(vectors - vectors.mean(0), dim=0)
