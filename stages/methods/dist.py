"""DIST: knowledge distillation from a stronger teacher, by correlation.

Source: T. Huang et al., NeurIPS 2022 (arXiv 2205.10536); the defaults are those of the authors' code.
With p and q, (B, K), the softmax at temperature T of teacher and student, and r Pearson's correlation:

    L = T^2 ( beta mean_i (1 - r(p[i,:], q[i,:])) + gamma mean_k (1 - r(p[:,k], q[:,k])) )

The second term covers the whole batch of all processes.
"""

from __future__ import annotations

import torch
from torch import Tensor, autocast
from typing_extensions import override

from stages.methods.base import Batch, Method
from stages.methods.parts.argument_checks import (
    require_above,
    require_at_least,
    require_positive_weight,
)
from stages.methods.parts.gathering import gather, gather_with_gradient
from stages.models.features import Features, FeatureSpec

MIN_DEVIATION = 1e-4
"""The lower bound of a deviation's length: the square root of the 1e-8 that the authors add to the product
of both lengths, with which the gradient could grow to 1e8. With this bound it is at most 1e4."""


def correlation(left: Tensor, right: Tensor, dim: int) -> Tensor:
    """Compute Pearson's correlation.

    <a, b> / (max(|a|, 1e-4) max(|b|, 1e-4)) for the deviations a and b from the means.

    Args:
        left: Any shape, float32.
        right: The same shape.
        dim: The dimension to correlate along.

    Returns:
        The shape without `dim`; 0 where either side is constant.
    """
    left, right = (values - values.mean(dim, keepdim=True) for values in (left, right))
    left_length, right_length = (
        torch.linalg.vector_norm(values, dim=dim).clamp_min(MIN_DEVIATION) for values in (left, right)
    )
    coefficients: Tensor = (left * right).sum(dim) / (left_length * right_length)
    return coefficients


class Dist(Method):
    """Match the teacher's predictions up to scale and shift, within images and within classes.

    The loss is given in the module's equation. The second term needs two images: it is left out of a
    batch of one. Learns nothing of its own.

    Args:
        student: The student's shapes.
        teacher: The teacher's shapes.
        beta: Weight of the relation between classes, in each image.
        gamma: Weight of the relation between images, in each class.
        temperature: Divisor of the logits; the loss is multiplied by its square.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> import timm, torch
        >>> from stages.methods.dist import Dist
        >>> from stages.methods.observed import run_networks
        >>> from stages.models.observer import Observer
        >>> student = Observer(timm.create_model("test_byobnet"), Dist.needs())
        >>> teacher = Observer(timm.create_model("test_resnet"), Dist.needs()).eval()
        >>> method = Dist(student.spec(64, 3), teacher.spec(64, 3), temperature=4.0)
        >>> images, labels = torch.rand(4, 3, 64, 64), torch.tensor([1, 0, 2, 1])
        >>> loss = method(*run_networks(student, teacher, images, labels))
        >>> loss.backward()
    """

    name = "dist"

    def __init__(
        self,
        student: FeatureSpec,
        teacher: FeatureSpec,
        *,
        beta: float = 1.0,
        gamma: float = 1.0,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(student, teacher)
        require_at_least(0.0, beta=beta, gamma=gamma)
        require_positive_weight(beta=beta, gamma=gamma)
        require_above(0.0, temperature=temperature)
        self.beta, self.gamma, self.temperature = beta, gamma, temperature

    @override
    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """Compute the loss of one step; see `Method.forward`.

        With several processes every process must hold the same number of images.
        """
        with autocast(student.logits.device.type, enabled=False):
            q = (student.logits.float() / self.temperature).softmax(1)
            p = (teacher.logits.detach().float() / self.temperature).softmax(1)
            loss = self.beta * (1.0 - correlation(q, p, dim=1)).mean()
            if self.gamma > 0.0:
                all_q, all_p = gather_with_gradient(q), gather(p)
                if len(all_q) > 1:
                    within_classes = correlation(all_q, all_p, dim=0)
                    loss = loss + self.gamma * (1.0 - within_classes).mean()
            return self.temperature**2 * loss
