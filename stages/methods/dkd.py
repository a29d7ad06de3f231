"""DKD: decoupled knowledge distillation.

Source: B. Zhao et al., CVPR 2022 (arXiv 2203.08679); weights and temperatures are those of the authors'
code. With p and q the softmax at temperature T of teacher and student, y the true class, and p', q' the
same renormalized over the classes other than y:

    L = T^2 ( alpha KL( (p_y, 1 - p_y) || (q_y, 1 - q_y) ) + beta KL( p' || q' ) )

KD is the same with beta replaced by 1 - p_y, which nearly removes p' where the teacher is certain.
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
from stages.models.features import Features, FeatureSpec


def dkd_losses(
    student: Tensor, teacher: Tensor, labels: Tensor, alpha: float, beta: float, temperature: float
) -> Tensor:
    """Compute the module's equation.

    Probabilities are logarithms throughout: a student that is certain of a wrong class has a large loss,
    but never an infinite one.

    Args:
        student: Logits (..., K) of any float dtype.
        teacher: Logits (..., K) of any float dtype; they get no gradient.
        labels: (...) int64.
        alpha: Weight of the true class against all others.
        beta: Weight of the distribution among the other classes.
        temperature: T, above 0.

    Returns:
        (...) float32.
    """
    with autocast(student.device.type, enabled=False):
        is_label = torch.zeros_like(student, dtype=torch.bool).scatter_(-1, labels[..., None], True)
        log_q_true, log_q_rest, log_q_others = _log_probabilities(student.float() / temperature, is_label)
        log_p_true, log_p_rest, log_p_others = _log_probabilities(
            teacher.detach().float() / temperature, is_label
        )
        binary = log_p_true.exp() * (log_p_true - log_q_true) + log_p_rest.exp() * (log_p_rest - log_q_rest)
        # Filled before the exponential: afterwards 0 times infinity would be NaN.
        p_others = log_p_others.masked_fill(is_label, -torch.inf).exp()
        among_others = (p_others * (log_p_others - log_q_others)).sum(-1)
        return temperature**2 * (alpha * binary + beta * among_others)


def _log_probabilities(logits: Tensor, is_label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute log p_y (...), log(1 - p_y) (...), and log p' (..., K).

    The entry of p' at y itself is finite and has no meaning.
    """
    others = logits.masked_fill(is_label, -torch.inf).logsumexp(-1, keepdim=True)
    true = torch.where(is_label, logits, 0.0).sum(-1, keepdim=True)
    every = torch.logaddexp(true, others)
    return (true - every)[..., 0], (others - every)[..., 0], logits - others


class Dkd(Method):
    """Match the teacher's probability of the true class and its distribution among the other classes.

    The loss is the mean of `dkd_losses` over images. Learns nothing of its own.

    Args:
        student: The student's shapes.
        teacher: The teacher's shapes.
        alpha: Weight of the true class against all others.
        beta: Weight of the distribution among the other classes.
        temperature: Divisor of the logits; the loss is multiplied by its square.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> import timm, torch
        >>> from stages.methods.dkd import Dkd
        >>> from stages.methods.observed import run_networks
        >>> from stages.models.observer import Observer
        >>> student = Observer(timm.create_model("test_byobnet"), Dkd.needs())
        >>> teacher = Observer(timm.create_model("test_resnet"), Dkd.needs()).eval()
        >>> method = Dkd(student.spec(64, 3), teacher.spec(64, 3), beta=2.0)
        >>> images, labels = torch.rand(4, 3, 64, 64), torch.tensor([1, 0, 2, 1])
        >>> loss = method(*run_networks(student, teacher, images, labels))
        >>> loss.backward()
    """

    name = "dkd"

    def __init__(
        self,
        student: FeatureSpec,
        teacher: FeatureSpec,
        *,
        alpha: float = 1.0,
        beta: float = 8.0,
        temperature: float = 4.0,
    ) -> None:
        super().__init__(student, teacher)
        require_at_least(0.0, alpha=alpha, beta=beta)
        require_positive_weight(alpha=alpha, beta=beta)
        require_above(0.0, temperature=temperature)
        self.alpha, self.beta, self.temperature = alpha, beta, temperature

    @override
    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """Compute the loss of one step; see `Method.forward`."""
        losses = dkd_losses(
            student.logits, teacher.logits, batch.labels, self.alpha, self.beta, self.temperature
        )
        return losses.mean()
