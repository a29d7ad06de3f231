"""DKD: decoupled knowledge distillation.

B. Zhao et al., CVPR 2022 (arXiv 2203.08679); weights and temperatures of the authors' code. With p and
q the softmax at temperature T of teacher and student, y the true class, and p', q' those renormalised
over the classes other than y:

    L = T^2 ( alpha KL( (p_y, 1 - p_y) || (q_y, 1 - q_y) ) + beta KL( p' || q' ) )

KD is the same with beta replaced by 1 - p_y, which all but silences p' where the teacher is certain.
"""

from __future__ import annotations

import torch
from torch import Tensor, autocast

from stages.methods.base import Batch, Method
from stages.methods.settings import DkdSettings
from stages.models.features import Features, FeatureSpec


def dkd_losses(
    student: Tensor, teacher: Tensor, labels: Tensor, alpha: float, beta: float, temperature: float
) -> Tensor:
    """The module's equation: logits (..., K) of any float dtype, labels (...) int64 -> float32 (...).

    Every probability stays a logarithm: a student that is sure of a wrong class loses much, never
    infinitely much.
    """
    with autocast(student.device.type, enabled=False):
        labelled = torch.zeros_like(student, dtype=torch.bool).scatter_(-1, labels[..., None], True)
        own, rest, within = _parts(student.float() / temperature, labelled)
        own_t, rest_t, within_t = _parts(teacher.detach().float() / temperature, labelled)
        binary = own_t.exp() * (own_t - own) + rest_t.exp() * (rest_t - rest)
        # Filled before the exponential: afterwards 0 times infinity would be NaN.
        others = within_t.masked_fill(labelled, -torch.inf).exp() * (within_t - within)
        return temperature**2 * (alpha * binary + beta * others.sum(-1))


def _parts(logits: Tensor, labelled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log p_y (...), log(1 - p_y) (...), and log p' (..., K), finite but without meaning at y itself."""
    others = logits.masked_fill(labelled, -torch.inf).logsumexp(-1, keepdim=True)
    own = torch.where(labelled, logits, 0.0).sum(-1, keepdim=True)
    whole = torch.logaddexp(own, others)
    return (own - whole)[..., 0], (others - whole)[..., 0], logits - others


class Dkd(Method):
    """The mean of `dkd_losses` over images."""

    name = "dkd"

    def __init__(self, settings: DkdSettings, student: FeatureSpec, teacher: FeatureSpec) -> None:
        super().__init__(settings, student, teacher)
        self.settings = settings

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        alpha, beta, temperature = self.settings.alpha, self.settings.beta, self.settings.temperature
        return dkd_losses(student.logits, teacher.logits, batch.labels, alpha, beta, temperature).mean()
