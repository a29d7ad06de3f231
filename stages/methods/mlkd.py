"""MLKD: multi-level logit distillation.

Source: Y. Jin, J. Wang and D. Lin, CVPR 2023. With P_t and Q_t, (B, K), the softmax of teacher and student
at temperature t, summed over the temperatures:

    L = sum_t ( instance_weight t^2 KL(P_t || Q_t) / B
              + batch_weight |P_t P_t^T - Q_t Q_t^T|^2 / B
              + class_weight |P_t^T P_t - Q_t^T Q_t|^2 / K )

The matrices, (B, B) and (K, K), are the similarities of images and of classes; |.|^2 is the sum of the
squared entries. The equations are those of the authors' code; the equal weights are our reading. We left
out their second, strong augmentation, whose logits add the first term once more, and their masks of
confident images and classes, which multiply a mean there and so only scale it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, autocast
from torch.nn import functional
from typing_extensions import override

from stages.methods.base import Batch, Method
from stages.methods.parts.argument_checks import (
    require_at_least,
    require_positive_weight,
    require_temperatures,
)
from stages.methods.parts.gathering import gather, gather_with_gradient
from stages.models.features import Features, FeatureSpec


class Mlkd(Method):
    """Match the teacher's predictions by image, by batch and by class, at several temperatures.

    The loss is given in the module's equation, where B is the whole batch of all processes. Learns
    nothing of its own.

    Args:
        student: The student's shapes.
        teacher: The teacher's shapes.
        temperatures: Divisors of the logits; the losses are added.
        instance_weight: Weight of the divergence in each image.
        batch_weight: Weight of the similarity between images.
        class_weight: Weight of the similarity between classes.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> import timm, torch
        >>> from stages.methods.mlkd import Mlkd
        >>> from stages.methods.observed import run_networks
        >>> from stages.models.observer import Observer
        >>> student = Observer(timm.create_model("test_byobnet"), Mlkd.needs())
        >>> teacher = Observer(timm.create_model("test_resnet"), Mlkd.needs()).eval()
        >>> method = Mlkd(student.spec(64, 3), teacher.spec(64, 3), temperatures=(2.0, 4.0))
        >>> images, labels = torch.rand(4, 3, 64, 64), torch.tensor([1, 0, 2, 1])
        >>> loss = method(*run_networks(student, teacher, images, labels))
        >>> loss.backward()
    """

    name = "mlkd"

    temperatures: Tensor

    def __init__(
        self,
        student: FeatureSpec,
        teacher: FeatureSpec,
        *,
        temperatures: Sequence[float] = (2.0, 3.0, 4.0, 5.0, 6.0),
        instance_weight: float = 1.0,
        batch_weight: float = 1.0,
        class_weight: float = 1.0,
    ) -> None:
        super().__init__(student, teacher)
        require_temperatures(temperatures)
        weights = {
            "instance_weight": instance_weight,
            "batch_weight": batch_weight,
            "class_weight": class_weight,
        }
        require_at_least(0.0, **weights)
        require_positive_weight(**weights)
        self.instance_weight, self.batch_weight, self.class_weight = weights.values()
        self.register_buffer("temperatures", torch.tensor(temperatures)[:, None, None], persistent=False)

    @override
    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """Compute the loss of one step; see `Method.forward`.

        With several processes every process must hold the same number of images.
        """
        with autocast(student.logits.device.type, enabled=False):
            # (temperatures, N, K), N the images of all processes.
            log_q = (gather_with_gradient(student.logits.float()) / self.temperatures).log_softmax(-1)
            log_p = (gather(teacher.logits.float()) / self.temperatures).log_softmax(-1)
            images, classes = log_q.shape[1:]
            loss = student.logits.new_zeros((), dtype=torch.float32)
            if self.instance_weight > 0.0:
                divergence = functional.kl_div(log_q, log_p, reduction="none", log_target=True)
                loss = loss + self.instance_weight / images * (self.temperatures**2 * divergence).sum()
            q, p = log_q.exp(), log_p.exp()
            if self.batch_weight > 0.0:
                gap = torch.matmul(p, p.transpose(1, 2)) - torch.matmul(q, q.transpose(1, 2))
                loss = loss + self.batch_weight / images * gap.square().sum()
            if self.class_weight > 0.0:
                gap = torch.matmul(p.transpose(1, 2), p) - torch.matmul(q.transpose(1, 2), q)
                loss = loss + self.class_weight / classes * gap.square().sum()
        return loss
