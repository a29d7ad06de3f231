"""SDD: scale decoupled distillation.

S. Wei, C. Luo and Y. Luo, CVPR 2024 (arXiv 2403.13512). The final map is cut into the cells of grids at
several scales, and each network's own classifier, applied to the mean of a cell, gives the logits of that
part of the image. With l(i, m) the loss (kd or dkd) of cell m, of M, of image i:

    L = sum_{i,m} w[i,m] l(i,m) / (B M)

w is 1 where the teacher is right or wrong on the cell as on the whole image (consistent), and
`complementary_weight` where it is right on the one and wrong on the other. Weights 1 and 2 and the mean
over all cells are those of the authors' code.

Cells are pooled by the exact area they share with each pixel, each from the map itself. (The authors
pool the map to 4x4 first; where 4 does not divide its side those cells overlap, and the coarser
ones, pooled from them, are not means of the map.) So the mean over a grid's cells is, at every size, the
mean of the map, and the mean of their logits the network's own logit.
"""

from __future__ import annotations

import torch
from torch import Tensor, autocast

from pipeline.errors import ModelError
from stages.methods.base import Batch, Method
from stages.methods.dkd import dkd_losses
from stages.methods.kd import kd_losses
from stages.methods.parts.windows import WindowPool, cut, windows
from stages.methods.settings import SddSettings
from stages.models.features import Features, FeatureSpec


class Sdd(Method):
    """The loss of the module's equation. Learns nothing of its own; the gradient reaches the student's
    map and its classifier."""

    name = "sdd"

    def __init__(self, settings: SddSettings, student: FeatureSpec, teacher: FeatureSpec) -> None:
        """Raises ModelError: the classifier of either network is not linear on the mean of its map."""
        super().__init__(settings, student, teacher)
        self.settings = settings
        for role, spec in (("student", student), ("teacher", teacher)):
            if not spec.head_is_linear_on_pooled:
                raise ModelError(
                    f"sdd cannot judge parts of the image with this {role}",
                    why="its classifier is not one linear layer on the mean of its final map",
                    hint=f"choose such a {role} (a ResNet, an EfficientNet), or the method {settings.inner}",
                )
        sizes = [spec.map[1:] for spec in (student, teacher)]
        cells = windows(cut(settings.grids, *sizes), stride=1.0)
        self.student_pool = WindowPool(cells, *sizes[0])
        self.teacher_pool = WindowPool(cells, *sizes[1])

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        settings = self.settings
        with autocast(student.map.device.type, enabled=False):
            ours = batch.student.local_logits(self.student_pool(student.map))
            with torch.no_grad():
                theirs = batch.teacher.local_logits(self.teacher_pool(teacher.map))
                labels = batch.labels[:, None].expand(theirs.shape[:2])
                right = theirs.argmax(-1) == labels
                right_on_whole = (teacher.logits.argmax(-1) == batch.labels)[:, None]
                complementary = (right != right_on_whole).float()
                weights = 1.0 + (settings.complementary_weight - 1.0) * complementary
            if settings.inner == "dkd":
                losses = dkd_losses(ours, theirs, labels, settings.alpha, settings.beta, settings.temperature)
            else:
                losses = kd_losses(ours, theirs, settings.temperature)
            return (weights * losses).mean()
