"""OFA-KD: one for all (Hao et al., NeurIPS 2023, arXiv 2310.19444).

Maps of networks of different families cannot be compared, but their logits can. A branch at each stage end
of the student computes logits, and every branch learns the teacher's logits, like the student itself.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from stages.methods.base import Batch, Method
from stages.methods.parts.argument_checks import (
    require_above,
    require_at_least,
    require_at_most,
    require_one_of,
)
from stages.methods.parts.branches import build_branch
from stages.models.features import Features, FeatureSpec, Needs

Form = Literal["code", "paper"]


def ofa_targets(teacher: Tensor, labels: Tensor, eps: float, form: Form) -> Tensor:
    """Compute the weights of the student's log-probabilities in the loss.

    With p the teacher's softmax at temperature 1 and y the label:

        code:   (p[c] + 1_y[c])^eps - 1_y[c]                          official code, distillers/ofa.py
        paper:  (1 + p[y])^eps for the label, p[c] for the others     our recollection of the paper's form

    The two also differ at eps = 1, where the form of the code is p itself. All branches share them.

    Args:
        teacher: Logits (B, K) of any float dtype.
        labels: (B,) int64.
        eps: The exponent, above 0.
        form: Which of the two forms.

    Returns:
        (B, K) float32, without gradient.
    """
    with torch.no_grad(), torch.autocast(teacher.device.type, enabled=False):
        probability = teacher.float().softmax(1)
        label_columns = labels[:, None]
        raised = (1.0 + probability.gather(1, label_columns)).pow(eps)
        if form == "paper":
            return probability.scatter(1, label_columns, raised)
        return probability.pow(eps).scatter(1, label_columns, raised - 1.0)


def ofa_loss(student: Tensor, targets: Tensor) -> Tensor:
    """Compute - sum_c targets[c] * log softmax(student)[c], mean over images.

    Args:
        student: Logits (B, K) of any float dtype.
        targets: (B, K) float32, from `ofa_targets`.

    Returns:
        A float32 scalar.
    """
    with torch.autocast(student.device.type, enabled=False):
        return -(targets * functional.log_softmax(student.float(), dim=1)).sum(1).mean()


class Ofa(Method):
    """Match the teacher's logits with the student's logits and with those of branches at its stage ends.

    The loss is the sum of `ofa_loss` over the student's logits and each branch. The branches run in the
    precision of the step, the losses in float32. Learns the branches (`build_branch`).

    Args:
        student: The student's shapes.
        teacher: The teacher's shapes.
        form: Which published form of the loss: of the official code, or of the paper.
        eps: The exponent of the target.
        branches: The number of deepest stage ends with a branch, at most 4 and at most those that the
            student has; 0: only the student's logits.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> import timm, torch
        >>> from stages.methods.observed import run_networks
        >>> from stages.methods.ofa import Ofa
        >>> from stages.models.observer import Observer
        >>> student = Observer(timm.create_model("test_byobnet"), Ofa.needs(branches=2))
        >>> teacher = Observer(timm.create_model("test_resnet"), Ofa.needs(branches=2)).eval()
        >>> method = Ofa(student.spec(64, 3), teacher.spec(64, 3), branches=2)
        >>> images, labels = torch.rand(4, 3, 64, 64), torch.tensor([1, 0, 2, 1])
        >>> loss = method(*run_networks(student, teacher, images, labels))
        >>> loss.backward()
    """

    name = "ofa"

    def __init__(
        self,
        student: FeatureSpec,
        teacher: FeatureSpec,
        *,
        form: Form = "code",
        eps: float = 1.0,
        branches: int = 4,
    ) -> None:
        super().__init__(student, teacher)
        require_one_of(get_args(Form), form=form)
        require_above(0.0, eps=eps)
        require_at_least(0, branches=branches)
        require_at_most(4, branches=branches)
        self.form, self.eps = form, eps
        ends = student.ends[len(student.ends) - min(branches, len(student.ends)) :]
        # A network whose stages all have one size is a network of tokens: patches that never merge.
        shrinks = len({end[1:] for end in student.ends}) > 1 or len(student.ends) == 1
        width = max(student.embedding, teacher.embedding)
        self.branches = nn.ModuleList(
            build_branch(end, len(ends) - 1 - number, width, student.classes, shrinks=shrinks)
            for number, end in enumerate(ends)
        )

    @classmethod
    @override
    def needs(cls, *, branches: int = 4, **_arguments: Any) -> Needs:
        """List the stage ends if there are branches.

        Args:
            branches: As in the constructor.
            **_arguments: The other arguments of the constructor.

        Returns:
            The maps to observe.
        """
        return Needs(ends=branches > 0)

    @override
    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """Compute the loss of one step; see `Method.forward`."""
        targets = ofa_targets(teacher.logits, batch.labels, self.eps, self.form)
        loss = ofa_loss(student.logits, targets)
        ends = student.ends[len(student.ends) - len(self.branches) :]
        for branch, end in zip(self.branches, ends, strict=True):
            loss = loss + ofa_loss(branch(end), targets)
        return loss
