"""DIST: knowledge distillation from a stronger teacher, by correlation.

T. Huang et al., NeurIPS 2022 (arXiv 2205.10536); defaults of the authors' code. With p and q, (B, K), the
softmax at temperature T of teacher and student, and r Pearson's correlation:

    L = T^2 ( beta mean_i (1 - r(p[i,:], q[i,:])) + gamma mean_k (1 - r(p[:,k], q[:,k])) )

The second term is over the whole batch, that of all processes.
"""

from __future__ import annotations

import torch
from torch import Tensor, autocast

from stages.methods.base import Batch, Method
from stages.methods.parts.gathering import gather, gather_with_gradient
from stages.methods.settings import DistSettings
from stages.models.features import Features, FeatureSpec

SHORTEST = 1e-4
"""Deviations shorter than this hardly correlate: to the root of the 1e-8 that the authors add to the
product of both lengths, where the gradient could grow to 1e8. Here it is at most 1e4."""


def correlation(left: Tensor, right: Tensor, dim: int) -> Tensor:
    """Pearson's along `dim`, float32; 0 where either side is constant.

    <a, b> / (max(|a|, 1e-4) max(|b|, 1e-4)) for the deviations a and b from the means."""
    left, right = (values - values.mean(dim, keepdim=True) for values in (left, right))
    lengths = [torch.linalg.vector_norm(values, dim=dim).clamp_min(SHORTEST) for values in (left, right)]
    return (left * right).sum(dim) / (lengths[0] * lengths[1])


class Dist(Method):
    """The loss of the module's equation. Of one image the second term says nothing, and is left out."""

    name = "dist"

    def __init__(self, settings: DistSettings, student: FeatureSpec, teacher: FeatureSpec) -> None:
        super().__init__(settings, student, teacher)
        self.settings = settings

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """As `Method.forward`. With several processes every one must hold equally many images."""
        settings, temperature = self.settings, self.settings.temperature
        with autocast(student.logits.device.type, enabled=False):
            ours = (student.logits.float() / temperature).softmax(1)
            theirs = (teacher.logits.detach().float() / temperature).softmax(1)
            loss = settings.beta * (1.0 - correlation(ours, theirs, dim=1)).mean()
            if settings.gamma > 0.0:
                all_of_ours, all_of_theirs = gather_with_gradient(ours), gather(theirs)
                if len(all_of_ours) > 1:
                    within = correlation(all_of_ours, all_of_theirs, dim=0)
                    loss = loss + settings.gamma * (1.0 - within).mean()
            return temperature**2 * loss
