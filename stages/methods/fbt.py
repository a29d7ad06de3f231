"""FBT: fuse before transfer, first named TAS (ICCV 2025, arXiv 2410.12342), in our reading of its
summaries.

Between teacher T and student S stands a fused network F that is half of each: the student's stages
up to the last but one, then a block of its own, then the teacher's last stage and classifier, with
the teacher's weights. What F shows of its first half can be understood by the teacher, and what it
shows of its last by the student:

    L      = L(T,S) + L(T,F) + L(F,S)
    L(i,j) = lambda_contrast L_InfoNCE(f_i, f_j) + lambda_logits L_OFA(p_i, p_j)

f: the mean over space of the final map, the student's through one linear layer to the teacher's
channels; each vector of j is to be nearer to i's of the same image than to i's of any other of the
batch, at a learned temperature. p: the logits. L_OFA is `ofa_loss`.

Our reading: j learns from i, so that i carries no gradient in L(i,j): F learns from T alone, and
through F's first half the student's stages do. The teacher's last stage is frozen (the summaries
say shared weights; a copy that is trained would be the alternative). The fusing block is area-exact
resizing, a 1x1 convolution and one pre-norm transformer block over the whole map (in the paper
patch embedding and a Swin block, whose attention stays within windows). One temperature and one
projector serve all three pairs; InfoNCE has one direction. In a teacher with a class token that
token stays the teacher's own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from stages.methods.base import Batch, Method
from stages.methods.ofa import ofa_loss, ofa_targets
from stages.methods.parts import contrast
from stages.methods.parts.blocks import MapBlocks
from stages.methods.parts.ends import paired
from stages.methods.parts.gathering import gather, place
from stages.methods.settings import FbtSettings, MethodSettings
from stages.models.features import Features, FeatureSpec, Needs
from stages.models.resampling import AreaResample

TAU_RANGE = (0.01, 1.0)
"""Where the learned temperature stays."""


class Fbt(Method):
    """The loss of the module's equations. The fusing block runs in the step's precision, the losses in
    float32. Learns the block, the projector and the temperature."""

    name = "fbt"

    def __init__(self, settings: FbtSettings, student: FeatureSpec, teacher: FeatureSpec) -> None:
        """Raises ModelError for a network of fewer than two stage ends, or without a final map."""
        super().__init__(settings, student, teacher)
        self.settings = settings
        ours, theirs = paired("fbt", student, teacher, at_least=2)[-2]
        self.fused_end = len(teacher.ends) - 2
        self.fusion = nn.Sequential(
            AreaResample((ours[1], ours[2]), (theirs[1], theirs[2])),
            nn.Conv2d(ours[0], theirs[0], 1),
            MapBlocks(theirs[0], settings.heads, 1),
        )
        self.contrast: PooledContrast | None = None
        if settings.lambda_contrast > 0.0:
            channels = student.shape_of(None, "student")[0], teacher.shape_of(None, "teacher")[0]
            self.contrast = PooledContrast(*channels, settings.tau)

    @classmethod
    def needs(cls, settings: MethodSettings) -> Needs:
        return Needs(ends=True, teacher_again=True)

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """As `Method.forward`. With several processes the negatives are those of the whole batch, each
        process gives the loss of its own images, and every process must hold equally many."""
        fused = self.fusion(student.ends[-2])
        assistant = batch.teacher.again({self.fused_end: lambda maps: fused.to(maps.dtype)})
        loss = student.logits.new_zeros((), dtype=torch.float32)
        if self.settings.lambda_logits > 0.0:
            answers = self._answers(student.logits, teacher.logits, assistant.logits, batch.labels)
            loss = loss + self.settings.lambda_logits * answers
        if self.contrast is not None:
            contrasted = self.contrast(student.map, teacher.map, assistant.map)
            loss = loss + self.settings.lambda_contrast * contrasted
        return loss

    def _answers(self, student: Tensor, teacher: Tensor, assistant: Tensor, labels: Tensor) -> Tensor:
        """L_OFA of the three pairs: logits (B, K) each."""
        of_teacher, of_assistant = (
            ofa_targets(logits, labels, self.settings.eps, self.settings.form)
            for logits in (teacher, assistant)
        )
        return (
            ofa_loss(student, of_teacher) + ofa_loss(assistant, of_teacher) + ofa_loss(student, of_assistant)
        )


class PooledContrast(nn.Module):
    """InfoNCE of the three pairs on pooled maps: (B, C_S, H, W), twice (B, C_T, H', W') -> float32 scalar."""

    def __init__(self, student: int, teacher: int, tau: float) -> None:
        super().__init__()
        self.projector = nn.Linear(student, teacher)
        self.log_tau = nn.Parameter(torch.tensor(math.log(tau)))

    def forward(self, student: Tensor, teacher: Tensor, assistant: Tensor) -> Tensor:
        with torch.autocast(student.device.type, enabled=False):
            ours, theirs, between = (maps.float().mean((2, 3)) for maps in (student, teacher, assistant))
            ours, between = contrast.unit(self.projector(ours)), contrast.unit(between)
            theirs_of_all = gather(contrast.unit(theirs))
            temperature = self._temperature()
            return (
                _info_nce(ours, theirs_of_all, temperature)
                + _info_nce(between, theirs_of_all, temperature)
                + _info_nce(ours, gather(between), temperature)
            )

    def _temperature(self) -> Tensor:
        # Clamped before its use, not in the graph: a clamp in the graph has no gradient at the bound.
        with torch.no_grad():
            self.log_tau.clamp_(math.log(TAU_RANGE[0]), math.log(TAU_RANGE[1]))
        return self.log_tau.exp()


def _info_nce(anchors: Tensor, candidates_of_all: Tensor, temperature: Tensor) -> Tensor:
    """(B, D), (world * B, D), both of unit length -> mean over this process's images."""
    offset = place()[0] * len(anchors)
    losses = contrast.sample_wise(
        anchors[:, None], candidates_of_all[:, None], temperature, offset, mask=None
    )
    return losses.mean()
