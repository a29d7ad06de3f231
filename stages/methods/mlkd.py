"""MLKD: multi-level logit distillation.

Y. Jin, J. Wang and D. Lin, CVPR 2023. With P_t and Q_t, (B, K), the softmax of teacher and student at
temperature t, summed over the temperatures:

    L = sum_t ( instance_weight t^2 KL(P_t || Q_t) / B
              + batch_weight |P_t P_t^T - Q_t Q_t^T|^2 / B
              + class_weight |P_t^T P_t - Q_t^T Q_t|^2 / K )

The matrices, (B, B) and (K, K), tell which images and which classes the network takes for alike; |.|^2
is the sum of the squared entries. The equations are those of the authors' code, the equal weights are our
reading. Left out are its second, strong augmentation, whose logits give the first term once more, and
its masks of confident images and classes, which there multiply a mean and so only scale it.
"""

from __future__ import annotations

import torch
from torch import Tensor, autocast
from torch.nn import functional

from stages.methods.base import Batch, Method
from stages.methods.parts.gathering import gather, gather_with_gradient
from stages.methods.settings import MlkdSettings
from stages.models.features import Features, FeatureSpec


class Mlkd(Method):
    """The loss of the module's equation, B being the whole batch, that of all processes."""

    name = "mlkd"

    temperatures: Tensor

    def __init__(self, settings: MlkdSettings, student: FeatureSpec, teacher: FeatureSpec) -> None:
        super().__init__(settings, student, teacher)
        self.settings = settings
        self.register_buffer(
            "temperatures", torch.tensor(settings.temperatures)[:, None, None], persistent=False
        )

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """As `Method.forward`. With several processes every one must hold equally many images."""
        settings = self.settings
        with autocast(student.logits.device.type, enabled=False):
            # (temperatures, N, K), N the images of all processes.
            log_q = (gather_with_gradient(student.logits.float()) / self.temperatures).log_softmax(-1)
            log_p = (gather(teacher.logits.float()) / self.temperatures).log_softmax(-1)
            images, classes = log_q.shape[1:]
            loss = student.logits.new_zeros((), dtype=torch.float32)
            if settings.instance_weight > 0.0:
                each = functional.kl_div(log_q, log_p, reduction="none", log_target=True)
                loss = loss + settings.instance_weight / images * (self.temperatures**2 * each).sum()
            q, p = log_q.exp(), log_p.exp()
            if settings.batch_weight > 0.0:
                gap = torch.matmul(p, p.transpose(1, 2)) - torch.matmul(q, q.transpose(1, 2))
                loss = loss + settings.batch_weight / images * gap.square().sum()
            if settings.class_weight > 0.0:
                gap = torch.matmul(p.transpose(1, 2), p) - torch.matmul(q.transpose(1, 2), q)
                loss = loss + settings.class_weight / classes * gap.square().sum()
        return loss
