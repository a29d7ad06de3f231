"""FBT: fuse before transfer, first named TAS (ICCV 2025, arXiv 2410.12342), in our reading of its summaries.

A fused network F between teacher T and student S has the student's stages up to the last but one, then a
block of its own, then the teacher's last stage and classifier with the teacher's weights. The teacher can
relate to the first half of F, and the student to its last:

    L      = L(T,S) + L(T,F) + L(F,S)
    L(i,j) = lambda_contrast L_InfoNCE(f_i, f_j) + lambda_logits L_OFA(p_i, p_j)

f: the mean over space of the final map, the student's with one linear layer to the teacher's channels.
Each vector of j should be nearer to i's vector of the same image than to i's vector of any other image of
the batch, at a learned temperature. p: the logits. L_OFA is `ofa_loss`.

Our reading: j learns from i, so i carries no gradient in L(i,j): F learns only from T, and the student's
stages learn through F's first half. The teacher's last stage is frozen (the summaries mention shared
weights; a trained copy would be the alternative). The fusing block is area-exact resampling, a 1x1
convolution and one pre-norm transformer block over the whole map (in the paper patch embedding and a Swin
block, whose attention is limited to windows). All three pairs share one temperature and one projector;
InfoNCE has one direction. In a teacher with a class token that token is the teacher's own.
"""

from __future__ import annotations

import math
from typing import Any, get_args

import torch
from torch import Tensor, nn
from typing_extensions import override

from stages.methods.base import Batch, Method
from stages.methods.ofa import Form, ofa_loss, ofa_targets
from stages.methods.parts.argument_checks import (
    require_above,
    require_at_least,
    require_at_most,
    require_one_of,
    require_positive_weight,
)
from stages.methods.parts.contrastive_losses import sample_wise_losses, unit_vectors
from stages.methods.parts.gathering import gather, rank_and_world_size
from stages.methods.parts.map_transformer import MapTransformer
from stages.methods.parts.stage_pairs import paired_stage_ends
from stages.models.features import Features, FeatureSpec, Needs
from stages.models.resampling import AreaResample

TAU_RANGE = (0.01, 1.0)
"""The range of the learned temperature."""


class Fbt(Method):
    """Match the teacher directly and through a network fused of student and teacher.

    The loss is given in the module's equations. The fusing block runs in the precision of the step, the
    losses in float32. Learns the block, the projector and the temperature.

    Args:
        student: The student's shapes.
        teacher: The teacher's shapes.
        form: The form of the loss on the logits, as in `Ofa`.
        eps: The exponent of that loss, as in `Ofa`.
        tau: The initial temperature of the contrastive loss, 0.01 to 1; it is learned.
        lambda_contrast: Weight of the contrastive loss on the pooled maps.
        lambda_logits: Weight of the loss on the logits.
        heads: The most attention heads of the fusing block.

    Raises:
        ModelError: A network has fewer than two stage ends, or no final map.
        ValueError: An argument is out of range.

    Example:
        >>> import timm, torch
        >>> from stages.methods.fbt import Fbt
        >>> from stages.methods.observed import run_networks
        >>> from stages.models.observer import Observer
        >>> student = Observer(timm.create_model("test_byobnet"), Fbt.needs())
        >>> teacher = Observer(timm.create_model("test_resnet"), Fbt.needs()).eval()
        >>> method = Fbt(student.spec(64, 3), teacher.spec(64, 3), tau=0.2)
        >>> images, labels = torch.rand(4, 3, 64, 64), torch.tensor([1, 0, 2, 1])
        >>> loss = method(*run_networks(student, teacher, images, labels))
        >>> loss.backward()
    """

    name = "fbt"

    def __init__(
        self,
        student: FeatureSpec,
        teacher: FeatureSpec,
        *,
        form: Form = "code",
        eps: float = 1.0,
        tau: float = 0.1,
        lambda_contrast: float = 1.0,
        lambda_logits: float = 1.0,
        heads: int = 4,
    ) -> None:
        super().__init__(student, teacher)
        require_one_of(get_args(Form), form=form)
        require_above(0.0, eps=eps)
        require_at_least(TAU_RANGE[0], tau=tau)
        require_at_most(TAU_RANGE[1], tau=tau)
        require_at_least(0.0, lambda_contrast=lambda_contrast, lambda_logits=lambda_logits)
        require_positive_weight(lambda_contrast=lambda_contrast, lambda_logits=lambda_logits)
        require_at_least(1, heads=heads)
        self.form, self.eps = form, eps
        self.lambda_contrast, self.lambda_logits = lambda_contrast, lambda_logits
        pairs = paired_stage_ends("fbt", student, teacher, at_least=2)
        (student_channels, *student_size), (teacher_channels, *teacher_size) = pairs[-2]
        self.fused_end = len(teacher.ends) - 2
        self.fusion = nn.Sequential(
            AreaResample((student_size[0], student_size[1]), (teacher_size[0], teacher_size[1])),
            nn.Conv2d(student_channels, teacher_channels, 1),
            MapTransformer(teacher_channels, heads, 1),
        )
        self.contrast: PooledContrast | None = None
        if lambda_contrast > 0.0:
            channels = student.shape_of(None, "student")[0], teacher.shape_of(None, "teacher")[0]
            self.contrast = PooledContrast(*channels, tau)

    @classmethod
    @override
    def needs(cls, **_arguments: Any) -> Needs:
        """List the stage ends and a second run of the teacher; see `Method.needs`."""
        return Needs(ends=True, teacher_again=True)

    @override
    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """Compute the loss of one step; see `Method.forward`.

        With several processes the negatives are those of the whole batch, each process returns the loss
        of its own images, and every process must hold the same number of images.
        """
        fused_map = self.fusion(student.ends[-2])
        fused = batch.teacher.rerun_with_changed_maps({self.fused_end: lambda maps: fused_map.to(maps.dtype)})
        loss = student.logits.new_zeros((), dtype=torch.float32)
        if self.lambda_logits > 0.0:
            logits_loss = self._logits_loss(student.logits, teacher.logits, fused.logits, batch.labels)
            loss = loss + self.lambda_logits * logits_loss
        if self.contrast is not None:
            loss = loss + self.lambda_contrast * self.contrast(student.map, teacher.map, fused.map)
        return loss

    def _logits_loss(self, student: Tensor, teacher: Tensor, fused: Tensor, labels: Tensor) -> Tensor:
        """Compute L_OFA of the three pairs from logits (B, K) each."""
        teacher_targets = ofa_targets(teacher, labels, self.eps, self.form)
        fused_targets = ofa_targets(fused, labels, self.eps, self.form)
        return (
            ofa_loss(student, teacher_targets)
            + ofa_loss(fused, teacher_targets)
            + ofa_loss(student, fused_targets)
        )


class PooledContrast(nn.Module):
    """Compute InfoNCE of the three pairs of networks on their pooled maps.

    Args:
        student: Channels of the student's map.
        teacher: Channels of the teacher's map.
        tau: The initial temperature.
    """

    def __init__(self, student: int, teacher: int, tau: float) -> None:
        super().__init__()
        self.projector = nn.Linear(student, teacher)
        self.log_tau = nn.Parameter(torch.tensor(math.log(tau)))

    @override
    def forward(self, student: Tensor, teacher: Tensor, fused: Tensor) -> Tensor:
        """Compute the sum over the pairs.

        Args:
            student: The student's map, (B, C_S, H, W).
            teacher: The teacher's map, (B, C_T, H', W').
            fused: The fused network's map, (B, C_T, H', W').

        Returns:
            A float32 scalar.
        """
        with torch.autocast(student.device.type, enabled=False):
            student_pooled, teacher_pooled, fused_pooled = (
                maps.float().mean((2, 3)) for maps in (student, teacher, fused)
            )
            student_vectors = unit_vectors(self.projector(student_pooled))
            fused_vectors = unit_vectors(fused_pooled)
            all_teacher_vectors = gather(unit_vectors(teacher_pooled))
            temperature = self._temperature()
            return (
                _info_nce(student_vectors, all_teacher_vectors, temperature)
                + _info_nce(fused_vectors, all_teacher_vectors, temperature)
                + _info_nce(student_vectors, gather(fused_vectors), temperature)
            )

    def _temperature(self) -> Tensor:
        # Clamped in place before its use: a clamp in the graph has no gradient at the bound.
        with torch.no_grad():
            self.log_tau.clamp_(math.log(TAU_RANGE[0]), math.log(TAU_RANGE[1]))
        return self.log_tau.exp()


def _info_nce(anchors: Tensor, all_candidates: Tensor, temperature: Tensor) -> Tensor:
    """Compute the mean loss of this process's images from unit vectors (B, D), (world size * B, D)."""
    offset = rank_and_world_size()[0] * len(anchors)
    losses = sample_wise_losses(anchors[:, None], all_candidates[:, None], temperature, offset, mask=None)
    return losses.mean()
