"""DCD: discriminative and consistent distillation.

N. Giakoumoglou and T. Stathaki, arXiv 2407.11802; the equations are those of the authors' code. With
the pooled vectors f_S (B, C_S) and f_T (B, C_T):

    s, t   = norm(W_S f_S + c_S), norm(W_T f_T + c_T)      (B, feat_dim), unit length, both learned
    k      = clamp(exp(theta), 0, max_scale)               theta starts at log(scale) = 1
    L      = k s t^T + b                                   (B, B), float32
    L_con  = - mean_i log softmax_row(L)[i,i]
    L_cons = mean_i KL( softmax_col(L)^T[i,:] || softmax_row(L)[i,:] )
    loss   = L_con + consistency_weight L_cons

b cancels in both softmaxes: it is there for those who compare with that code. Our own options are
`symmetric` (adds - mean_i log softmax_col(L)[i,i]) and `detach_consistency_target`. Images of the
anchor's class are negatives like any other, as in that code.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.methods.base import Batch, Method
from stages.methods.parts.contrast import unit
from stages.methods.parts.gathering import gather, gather_with_gradient, place
from stages.methods.settings import DcdSettings
from stages.models.features import Features, FeatureSpec


class Dcd(Method):
    """The loss of the module's equations. Learns both projections and, if asked, factor and constant."""

    name = "dcd"

    def __init__(self, settings: DcdSettings, student: FeatureSpec, teacher: FeatureSpec) -> None:
        super().__init__(settings, student, teacher)
        self.settings = settings
        self.student_projector = nn.Linear(student.embedding, settings.feat_dim)
        self.teacher_projector = nn.Linear(teacher.embedding, settings.feat_dim)
        # Optimisers decay parameters of two dimensions and leave those of fewer alone.
        shape = (1, 1) if settings.weight_decay_on_scale else ()
        self.log_scale: nn.Parameter | None = None
        if settings.learn_scale:
            self.log_scale = nn.Parameter(torch.full(shape, math.log(settings.scale)))
        self.offset = nn.Parameter(torch.zeros(())) if settings.bias else None

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """As `Method.forward`. With several processes the matrix is that of the whole batch, each
        process gives the loss of its own images, and every process must hold equally many."""
        settings = self.settings
        both_ways = settings.consistency_weight > 0.0 or settings.symmetric
        with torch.autocast(student.embedding.device.type, enabled=False):
            ours = unit(self.student_projector(student.embedding.float()))
            # Gathered before the projection: then all that needs a gradient is local.
            theirs_of_all = unit(self.teacher_projector(gather(teacher.embedding.float())))
            images = len(ours)
            first = place()[0] * images
            scale = self._scale()
            rows = self._log_probability(ours, theirs_of_all, scale)
            # The positive of row i stands in column first + i.
            loss = -rows.diagonal(first).mean()
            if both_ways:
                theirs = theirs_of_all[first : first + images]
                columns = self._log_probability(theirs, gather_with_gradient(ours), scale)
                if settings.symmetric:
                    loss = loss - columns.diagonal(first).mean()
                if settings.consistency_weight > 0.0:
                    target = columns.detach() if settings.detach_consistency_target else columns
                    gap = functional.kl_div(rows, target, reduction="batchmean", log_target=True)
                    loss = loss + settings.consistency_weight * gap
        return loss

    def _log_probability(self, anchors: Tensor, candidates: Tensor, scale: Tensor | float) -> Tensor:
        """(B, D), (N, D) -> (B, N): row i over the candidates of anchor i. A column softmax of L is a row
        softmax of its transpose, which is the same matrix with anchors and candidates exchanged."""
        similarity = torch.matmul(anchors, candidates.T) * scale
        if self.offset is not None:
            similarity = similarity + self.offset
        return torch.log_softmax(similarity, dim=1)

    def _scale(self) -> Tensor | float:
        if self.log_scale is None:
            return self.settings.scale
        # In the graph, as in the authors' code: above the bound the factor has no gradient. Before the
        # exponential, so that it cannot overflow.
        return self.log_scale.clamp(max=math.log(self.settings.max_scale)).exp()
