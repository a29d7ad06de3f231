"""SDD: scale decoupled distillation.

Source: S. Wei, C. Luo and Y. Luo, CVPR 2024 (arXiv 2403.13512). The final map is divided into the cells of
grids at several scales. Each network's own classifier, applied to the mean of a cell, gives the logits
of that part of the image. With l(i, m) the loss (kd or dkd) of cell m, of M, of image i:

    L = sum_{i,m} w[i,m] l(i,m) / (B M)

w is 1 where the teacher is right, or wrong, on both the cell and the whole image (consistent), and
`complementary_weight` where it is right on one and wrong on the other. The weights 1 and 2 and the mean
over all cells are those of the authors' code.

Our reading: cells are pooled by the exact area that they share with each pixel, each from the map itself.
(The authors pool the map to 4x4 first; where 4 does not divide its side those cells overlap, and the
coarser cells, pooled from them, are not means of the map.) The mean over a grid's cells is therefore the
mean of the map at every size, and the mean of their logits is the network's own logit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, autocast
from typing_extensions import override

from pipeline.errors import ModelError
from stages.methods.base import Batch, Method
from stages.methods.dkd import dkd_losses
from stages.methods.kd import kd_losses
from stages.methods.parts.argument_checks import (
    require_above,
    require_at_least,
    require_grids,
    require_one_of,
    require_positive_weight,
)
from stages.methods.parts.windows import WindowPool, limit_grids, sliding_windows
from stages.models.features import Features, FeatureSpec

InnerLoss = Literal["kd", "dkd"]


class Sdd(Method):
    """Match the teacher's logits of the parts of the image, at several scales.

    The loss is given in the module's equation. Learns nothing of its own; the gradient reaches the
    student's map and its classifier.

    Args:
        student: The student's shapes.
        teacher: The teacher's shapes.
        grids: Parts per axis at each scale, limited to the smaller map.
        inner: The loss of each part's logits.
        temperature: Divisor of the logits; the loss is multiplied by its square.
        alpha: Weight of the true class against all others, with the inner loss dkd.
        beta: Weight of the distribution among the other classes, with the inner loss dkd.
        complementary_weight: Weight of parts where the teacher is right and wrong on the whole image, or
            the reverse.

    Raises:
        ModelError: The classifier of a network is not one linear layer on the mean of its map.
        ValueError: An argument is out of range.

    Example:
        >>> import timm, torch
        >>> from stages.methods.observed import run_networks
        >>> from stages.methods.sdd import Sdd
        >>> from stages.models.observer import Observer
        >>> student = Observer(timm.create_model("test_byobnet"), Sdd.needs())
        >>> teacher = Observer(timm.create_model("test_resnet"), Sdd.needs()).eval()
        >>> method = Sdd(student.spec(64, 3), teacher.spec(64, 3), grids=(1, 2))
        >>> images, labels = torch.rand(4, 3, 64, 64), torch.tensor([1, 0, 2, 1])
        >>> loss = method(*run_networks(student, teacher, images, labels))
        >>> loss.backward()
    """

    name = "sdd"

    def __init__(
        self,
        student: FeatureSpec,
        teacher: FeatureSpec,
        *,
        grids: Sequence[int] = (1, 2, 4),
        inner: InnerLoss = "kd",
        temperature: float = 4.0,
        alpha: float = 1.0,
        beta: float = 8.0,
        complementary_weight: float = 2.0,
    ) -> None:
        super().__init__(student, teacher)
        require_grids(grids)
        require_one_of(get_args(InnerLoss), inner=inner)
        require_above(0.0, temperature=temperature)
        require_at_least(0.0, alpha=alpha, beta=beta, complementary_weight=complementary_weight)
        if inner == "dkd":
            require_positive_weight(alpha=alpha, beta=beta)
        self.inner, self.temperature, self.alpha, self.beta = inner, temperature, alpha, beta
        self.complementary_weight = complementary_weight
        for role, spec in (("student", student), ("teacher", teacher)):
            if not spec.head_is_linear_on_pooled:
                raise ModelError(
                    f"sdd cannot judge parts of the image with this {role}",
                    why="its classifier is not one linear layer on the mean of its final map",
                    hint=f"choose such a {role} (a ResNet, an EfficientNet), or the method {inner}",
                )
        student_size, teacher_size = student.map[1:], teacher.map[1:]
        cells = sliding_windows(limit_grids(grids, student_size, teacher_size), stride=1.0)
        self.student_pool = WindowPool(cells, *student_size)
        self.teacher_pool = WindowPool(cells, *teacher_size)

    @override
    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """Compute the loss of one step; see `Method.forward`."""
        with autocast(student.map.device.type, enabled=False):
            student_logits = batch.student.local_logits(self.student_pool(student.map))
            with torch.no_grad():
                teacher_logits = batch.teacher.local_logits(self.teacher_pool(teacher.map))
                labels = batch.labels[:, None].expand(teacher_logits.shape[:2])
                locally_right = teacher_logits.argmax(-1) == labels
                globally_right = (teacher.logits.argmax(-1) == batch.labels)[:, None]
                complementary = (locally_right != globally_right).float()
                weights = 1.0 + (self.complementary_weight - 1.0) * complementary
            if self.inner == "dkd":
                losses = dkd_losses(
                    student_logits, teacher_logits, labels, self.alpha, self.beta, self.temperature
                )
            else:
                losses = kd_losses(student_logits, teacher_logits, self.temperature)
            return (weights * losses).mean()
