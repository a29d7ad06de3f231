"""DCD: discriminative and consistent distillation.

Source: N. Giakoumoglou and T. Stathaki, arXiv 2407.11802; the equations are those of the authors' code.
With the pooled vectors f_S (B, C_S) and f_T (B, C_T):

    s, t   = norm(W_S f_S + c_S), norm(W_T f_T + c_T)      (B, feat_dim), unit length, both learned
    k      = clamp(exp(theta), 0, max_scale)               theta starts at log(scale) = 1
    L      = k s t^T + b                                   (B, B), float32
    L_con  = - mean_i log softmax_row(L)[i,i]
    L_cons = mean_i KL( softmax_col(L)^T[i,:] || softmax_row(L)[i,:] )
    loss   = L_con + consistency_weight L_cons

b cancels in both softmaxes: it exists for comparisons with that code. Our own options are `symmetric`
(adds - mean_i log softmax_col(L)[i,i]) and `detach_consistency_target`. Images of the anchor's class are
negatives like any other, as in that code.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from stages.methods.base import Batch, Method
from stages.methods.parts.argument_checks import require_at_least, require_learnable_scale
from stages.methods.parts.contrastive_losses import unit_vectors
from stages.methods.parts.gathering import gather, gather_with_gradient, rank_and_world_size
from stages.models.features import Features, FeatureSpec


class Dcd(Method):
    """Contrast the pooled vectors within the batch, consistently in both directions.

    The loss is given in the module's equations. Learns both projections and, by arguments, the factor
    and the constant.

    Args:
        student: The student's shapes.
        teacher: The teacher's shapes.
        feat_dim: Channels that both pooled vectors are projected to.
        scale: The factor k of the similarities at the start (1 / temperature).
        learn_scale: Whether the factor is learned.
        max_scale: The upper bound of the learned factor.
        weight_decay_on_scale: Whether the optimizer's weight decay acts on the logarithm of the factor.
        bias: Whether a constant b is learned.
        consistency_weight: Weight of L_cons.
        detach_consistency_target: Whether L_cons has a gradient only through the row softmax.
        symmetric: Whether the contrast anchored at the teacher is added.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> import timm, torch
        >>> from stages.methods.dcd import Dcd
        >>> from stages.methods.observed import run_networks
        >>> from stages.models.observer import Observer
        >>> student = Observer(timm.create_model("test_byobnet"), Dcd.needs())
        >>> teacher = Observer(timm.create_model("test_resnet"), Dcd.needs()).eval()
        >>> method = Dcd(student.spec(64, 3), teacher.spec(64, 3), feat_dim=64)
        >>> images, labels = torch.rand(4, 3, 64, 64), torch.tensor([1, 0, 2, 1])
        >>> loss = method(*run_networks(student, teacher, images, labels))
        >>> loss.backward()
    """

    name = "dcd"

    def __init__(
        self,
        student: FeatureSpec,
        teacher: FeatureSpec,
        *,
        feat_dim: int = 128,
        scale: float = math.e,
        learn_scale: bool = True,
        max_scale: float = 10.0,
        weight_decay_on_scale: bool = True,
        bias: bool = False,
        consistency_weight: float = 0.5,
        detach_consistency_target: bool = False,
        symmetric: bool = False,
    ) -> None:
        super().__init__(student, teacher)
        require_at_least(1, feat_dim=feat_dim)
        require_at_least(0.0, consistency_weight=consistency_weight)
        require_learnable_scale(scale, max_scale, learn_scale=learn_scale)
        self.scale, self.max_scale = scale, max_scale
        self.consistency_weight = consistency_weight
        self.detach_consistency_target = detach_consistency_target
        self.symmetric = symmetric
        self.student_projector = nn.Linear(student.embedding, feat_dim)
        self.teacher_projector = nn.Linear(teacher.embedding, feat_dim)
        # Optimizers apply weight decay to parameters of two dimensions and not to those of fewer.
        shape = (1, 1) if weight_decay_on_scale else ()
        self.log_scale: nn.Parameter | None = None
        if learn_scale:
            self.log_scale = nn.Parameter(torch.full(shape, math.log(scale)))
        self.offset = nn.Parameter(torch.zeros(())) if bias else None

    @override
    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """Compute the loss of one step; see `Method.forward`.

        With several processes the matrix is that of the whole batch, each process returns the loss of its
        own images, and every process must hold the same number of images.
        """
        with torch.autocast(student.embedding.device.type, enabled=False):
            student_vectors = unit_vectors(self.student_projector(student.embedding.float()))
            # Gathered before the projection: everything that needs a gradient is then local.
            all_teacher_vectors = unit_vectors(self.teacher_projector(gather(teacher.embedding.float())))
            images = len(student_vectors)
            first = rank_and_world_size()[0] * images
            scale = self._scale()
            rows = self._log_probability(student_vectors, all_teacher_vectors, scale)
            # The positive of row i is in column first + i.
            loss = -rows.diagonal(first).mean()
            if self.consistency_weight > 0.0 or self.symmetric:
                teacher_vectors = all_teacher_vectors[first : first + images]
                columns = self._log_probability(teacher_vectors, gather_with_gradient(student_vectors), scale)
                if self.symmetric:
                    loss = loss - columns.diagonal(first).mean()
                if self.consistency_weight > 0.0:
                    target = columns.detach() if self.detach_consistency_target else columns
                    gap = functional.kl_div(rows, target, reduction="batchmean", log_target=True)
                    loss = loss + self.consistency_weight * gap
        return loss

    def _log_probability(self, anchors: Tensor, candidates: Tensor, scale: Tensor | float) -> Tensor:
        """Compute the row log softmax of L: (B, D), (N, D) to (B, N).

        A column softmax of L is a row softmax of its transpose, which is the same matrix with anchors
        and candidates exchanged.
        """
        similarity = torch.matmul(anchors, candidates.T) * scale
        if self.offset is not None:
            similarity = similarity + self.offset
        return torch.log_softmax(similarity, dim=1)

    def _scale(self) -> Tensor | float:
        if self.log_scale is None:
            return self.scale
        # In the graph, like in the authors' code: above the bound the factor has no gradient. Clamped
        # before the exponential, so that it cannot overflow.
        return self.log_scale.clamp(max=math.log(self.max_scale)).exp()
