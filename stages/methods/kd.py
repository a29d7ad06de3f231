"""KD: knowledge distillation with softened logits, optionally standardized per image.

Sources: Hinton, Vinyals and Dean (2015), section 2; Sun et al. (CVPR 2024) for the standardization.
"""

from __future__ import annotations

import math

from torch import Tensor, autocast
from torch.nn import functional
from typing_extensions import override

from stages.methods.base import Batch, Method
from stages.methods.parts.argument_checks import require_above
from stages.methods.parts.contrastive_losses import unit_vectors
from stages.models.features import Features, FeatureSpec


def kd_losses(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Compute T^2 KL(softmax(teacher/T) || softmax(student/T)), summed over classes.

    Source: Hinton, Vinyals and Dean (2015), section 2; T^2 preserves the gradient's scale when T changes.

    Args:
        student: Logits (..., K) of any float dtype.
        teacher: Logits (..., K) of any float dtype; they get no gradient.
        temperature: T, above 0.

    Returns:
        (...) float32.
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
    """Compute the mean of `kd_losses` over images.

    Args:
        student: Logits (B, K) of any float dtype.
        teacher: Logits (B, K) of any float dtype; they get no gradient.
        temperature: T, above 0.

    Returns:
        A float32 scalar.
    """
    return kd_losses(student, teacher, temperature).mean()


def standardized_logits(logits: Tensor) -> Tensor:
    """Scale each image's logits to mean 0 and standard deviation 1.

    Source: Sun et al. (CVPR 2024). The deviation has the denominator K - 1, like in their code. (With K
    the result would be that of a temperature larger by sqrt(K / (K - 1)).)

    Args:
        logits: (B, K) of any float dtype.

    Returns:
        (B, K) float32; equal logits become 0 and get no gradient.
    """
    with autocast(logits.device.type, enabled=False):
        logits = logits.float()
        centered = logits - logits.mean(-1, keepdim=True)
        # Twice: the rounding error of a large mean would otherwise count as a deviation.
        centered = centered - centered.mean(-1, keepdim=True)
        return math.sqrt(max(logits.shape[-1] - 1, 1)) * unit_vectors(centered)


class Kd(Method):
    """Match the teacher's softened logits.

    The loss is `kd_loss` of the logits, or of `standardized_logits`. Learns nothing of its own.

    Args:
        student: The student's shapes.
        teacher: The teacher's shapes.
        temperature: Divisor of the logits; the loss is multiplied by its square.
        logit_standardisation: Whether each image's logits are standardized first.

    Raises:
        ValueError: `temperature` is not above 0.

    Example:
        >>> import timm, torch
        >>> from stages.methods.kd import Kd
        >>> from stages.methods.observed import run_networks
        >>> from stages.models.observer import Observer
        >>> student = Observer(timm.create_model("test_byobnet"), Kd.needs())
        >>> teacher = Observer(timm.create_model("test_resnet"), Kd.needs()).eval()
        >>> method = Kd(student.spec(64, 3), teacher.spec(64, 3), temperature=2.0)
        >>> images, labels = torch.rand(4, 3, 64, 64), torch.tensor([1, 0, 2, 1])
        >>> loss = method(*run_networks(student, teacher, images, labels))
        >>> loss.backward()
    """

    name = "kd"

    def __init__(
        self,
        student: FeatureSpec,
        teacher: FeatureSpec,
        *,
        temperature: float = 4.0,
        logit_standardisation: bool = False,
    ) -> None:
        super().__init__(student, teacher)
        require_above(0.0, temperature=temperature)
        self.temperature = temperature
        self.logit_standardisation = logit_standardisation

    @override
    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """Compute the loss of one step; see `Method.forward`."""
        student_logits, teacher_logits = student.logits, teacher.logits
        if self.logit_standardisation:
            student_logits = standardized_logits(student_logits)
            teacher_logits = standardized_logits(teacher_logits)
        return kd_loss(student_logits, teacher_logits, self.temperature)
