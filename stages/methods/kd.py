"""Plain knowledge distillation."""

from __future__ import annotations

from torch import Tensor, autocast
from torch.nn import functional

from stages.methods.base import Batch, Method
from stages.methods.settings import KdSettings
from stages.models.features import Features, FeatureSpec


def kd_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher/T) || softmax(student/T)), summed over classes, mean over images.

    Hinton, Vinyals and Dean (2015), section 2; T^2 keeps the gradient's scale when T changes. Logits
    (B, K) of any float dtype -> float32 scalar.
    """
    with autocast(student.device.type, enabled=False):
        return temperature**2 * functional.kl_div(
            functional.log_softmax(student.float() / temperature, dim=1),
            functional.log_softmax(teacher.float() / temperature, dim=1),
            reduction="batchmean",
            log_target=True,
        )


class Kd(Method):
    """`kd_loss` at the settings' temperature."""

    name = "kd"

    def __init__(self, settings: KdSettings, student: FeatureSpec, teacher: FeatureSpec) -> None:
        super().__init__(settings, student, teacher)
        self.temperature = settings.temperature

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        return kd_loss(student.logits, teacher.logits, self.temperature)
