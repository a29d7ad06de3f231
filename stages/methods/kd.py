"""Plain knowledge distillation, and its logits standardised image by image."""

from __future__ import annotations

import math

from torch import Tensor, autocast
from torch.nn import functional

from stages.methods.base import Batch, Method
from stages.methods.parts import contrast
from stages.methods.settings import KdSettings
from stages.models.features import Features, FeatureSpec


def kd_losses(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher/T) || softmax(student/T)), summed over classes.

    Hinton, Vinyals and Dean (2015), section 2; T^2 keeps the gradient's scale when T changes. Logits
    (..., K) of any float dtype -> float32 (...).
    """
    with autocast(student.device.type, enabled=False):
        divergence = functional.kl_div(
            functional.log_softmax(student.float() / temperature, dim=-1),
            functional.log_softmax(teacher.detach().float() / temperature, dim=-1),
            reduction="none",
            log_target=True,
        )
        return temperature**2 * divergence.sum(-1)


def kd_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The mean of `kd_losses` over images: logits (B, K) of any float dtype -> float32 scalar."""
    return kd_losses(student, teacher, temperature).mean()


def standardised(logits: Tensor) -> Tensor:
    """Each image's logits at mean 0 and standard deviation 1: (B, K) of any float dtype -> float32.

    Sun et al. (CVPR 2024). With K - 1 in the deviation's denominator, as their code has it (K would be
    the same as a temperature larger by sqrt(K / (K - 1))). Equal logits become 0 and take no gradient.
    """
    with autocast(logits.device.type, enabled=False):
        logits = logits.float()
        centred = logits - logits.mean(-1, keepdim=True)
        # Once more: the rounding of a large mean would pass for a deviation.
        centred = centred - centred.mean(-1, keepdim=True)
        return math.sqrt(max(logits.shape[-1] - 1, 1)) * contrast.unit(centred)


class Kd(Method):
    """`kd_loss` at the settings' temperature, of the logits as they are or `standardised`."""

    name = "kd"

    def __init__(self, settings: KdSettings, student: FeatureSpec, teacher: FeatureSpec) -> None:
        super().__init__(settings, student, teacher)
        self.temperature = settings.temperature
        self.standardise = settings.logit_standardisation

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        ours, theirs = student.logits, teacher.logits
        if self.standardise:
            ours, theirs = standardised(ours), standardised(theirs)
        return kd_loss(ours, theirs, self.temperature)
