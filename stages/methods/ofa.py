"""OFA-KD: one for all (Hao et al., NeurIPS 2023, arXiv 2310.19444).

Maps of unlike networks cannot be compared; answers can. Each stage end of the student gives an
answer of its own through a branch, and every branch learns the teacher's answer, as the logits do.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.methods.base import Batch, Method
from stages.methods.parts.branches import branch
from stages.methods.settings import MethodSettings, OfaSettings
from stages.models.features import Features, FeatureSpec, Needs

Form = Literal["code", "paper"]


def ofa_targets(teacher: Tensor, labels: Tensor, eps: float, form: Form) -> Tensor:
    """What the loss weighs the student's log-probabilities by: (B, K) logits, (B,) -> (B, K) float32.

    With p the teacher's softmax at temperature 1 and y the label:

        code:   (p[c] + 1_y[c])^eps - 1_y[c]                          official code, distillers/ofa.py
        paper:  (1 + p[y])^eps for the label, p[c] for the others     our recollection of the paper's form

    The two differ also at eps = 1, where the code's is p itself. Computed once for all branches, and
    without a gradient.
    """
    with torch.no_grad(), torch.autocast(teacher.device.type, enabled=False):
        probability = teacher.float().softmax(1)
        true = labels[:, None]
        raised = (1.0 + probability.gather(1, true)).pow(eps)
        if form == "paper":
            return probability.scatter(1, true, raised)
        return probability.pow(eps).scatter(1, true, raised - 1.0)


def ofa_loss(student: Tensor, targets: Tensor) -> Tensor:
    """- sum_c targets[c] * log softmax(student)[c], mean over images: (B, K), (B, K) -> float32 scalar."""
    with torch.autocast(student.device.type, enabled=False):
        return -(targets * functional.log_softmax(student.float(), dim=1)).sum(1).mean()


class Ofa(Method):
    """`ofa_loss` of the student's logits and, added, of each branch's. The branches run in the step's
    precision, the losses in float32."""

    name = "ofa"

    def __init__(self, settings: OfaSettings, student: FeatureSpec, teacher: FeatureSpec) -> None:
        """Each branch is made by `branch`, the deepest ends' for a student of fewer."""
        super().__init__(settings, student, teacher)
        self.settings = settings
        chosen = student.ends[len(student.ends) - min(settings.branches, len(student.ends)) :]
        # A network whose blocks are all of one size is one of tokens: patches that never merge.
        shrinks = len({end[1:] for end in student.ends}) > 1 or len(student.ends) == 1
        width = max(student.embedding, teacher.embedding)
        self.branches = nn.ModuleList(
            branch(end, len(chosen) - 1 - number, width, student.classes, shrinks=shrinks)
            for number, end in enumerate(chosen)
        )

    @classmethod
    def needs(cls, settings: MethodSettings) -> Needs:
        assert isinstance(settings, OfaSettings)
        return Needs(ends=settings.branches > 0)

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        targets = ofa_targets(teacher.logits, batch.labels, self.settings.eps, self.settings.form)
        loss = ofa_loss(student.logits, targets)
        ends = student.ends[len(student.ends) - len(self.branches) :]
        for one, end in zip(self.branches, ends, strict=True):
            loss = loss + ofa_loss(one(end), targets)
        return loss
