"""MSDCRD: multi-scale decoupled contrastive relational distillation, in our reading of its abstract.

C. Wang and H. Wang, arXiv 2502.05835. Public to us are its abstracts (v1 to v3): the feature map is
decoupled by multi-scale sliding-window pooling into local features; a sample-wise and a
feature-wise contrastive loss tell, within one batch and without a memory bank, which local feature
of the teacher one of the student belongs to. Its equations, scales, temperatures and selection rule
are not public to us: what follows is our reading, and each doubtful point is a setting.

For each layer, with F_S (B, C_S, H_S, W_S) of the student and F_T (B, C_T, H_T, W_T) of the teacher,
without gradient:

    Z[i,m]   = pool of F over window m               one window set for both networks, relative coordinates
    U, V     = norm(h_S(Z_S)), norm(h_T(Z_T))        (B, M, D), unit length, float32
    A[m,i,j] = <U[i,m], V[j,m]> / tau_sample         same window, across images
    G[i,m,n] = <U[i,m], V[i,n]> / tau_feature        same image, across windows
    L_SW     = - sum_{m,i} w[i,m] log softmax_j(A[m,i,:])[i] / sum w
    L_FW     = - sum_{i,m} w[i,m] log softmax_n(G[i,m,:])[m] / sum w
    L        = sum over layers of (alpha L_SW + beta L_FW) + lambda_kd L_KD

The default h_S is one linear layer C_S -> C_T and h_T the identity. Readings on offer, by setting:
`layers` (v1 speaks of each layer), `selection` (the abstract's "sample categorisation" or "selection"),
`feature_axis` (windows, or channels as in contrastive clustering), `negatives`, `symmetric`,
`exclude_same_class` (as CRD does), `pool`, `projector`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pipeline.errors import ModelError
from stages.methods import contrast
from stages.methods.base import Batch, Method
from stages.methods.gathering import gather, gather_with_gradient, place
from stages.methods.kd import kd_loss
from stages.methods.settings import MethodSettings, MsdcrdSettings
from stages.methods.windows import (
    Window,
    WindowPool,
    cut,
    distinct,
    intersection_over_union,
    windows,
)
from stages.models.features import Features, FeatureSpec, Needs

EMBEDDING = 128
"""Channels of `both_128`, as CRD (Tian et al., 2020) embeds."""

TAU_RANGE = (0.01, 1.0)
"""Where learned temperatures stay; widened to hold the starting values."""


class Msdcrd(Method):
    """The loss of the module's equations. Learns its projectors and, if asked, its temperatures."""

    name = "msdcrd"

    def __init__(self, settings: MsdcrdSettings, student: FeatureSpec, teacher: FeatureSpec) -> None:
        """Raises ModelError: a network shows no map; `projector: none` with unequal channels;
        a selection that needs a teacher whose head is linear on the pooled map."""
        super().__init__(settings, student, teacher)
        self.settings = settings
        if settings.selection in ("sdd", "topk") and not teacher.head_is_linear_on_pooled:
            raise ModelError(
                f"`selection: {settings.selection}` cannot judge windows with this teacher",
                why="its classifier is not one linear layer on the mean of its final map",
                mend="set `selection: dedup` for msdcrd, or choose such a teacher (a ResNet)",
            )
        numbers: list[int | None] = [None] if settings.layers == "last" else list(settings.layers)
        contrasts = settings.alpha > 0.0 or settings.beta > 0.0
        self.layers = nn.ModuleList(
            ContrastLayer(settings, number, student, teacher) for number in (numbers if contrasts else [])
        )
        learned = {"sample": settings.tau_sample} if settings.alpha > 0.0 else {}
        if settings.beta > 0.0:
            learned["feature"] = settings.tau_feature
        starts = learned.values() if settings.learn_tau else ()
        self.log_tau = nn.ParameterDict(
            {key: nn.Parameter(torch.tensor(math.log(tau))) for key, tau in learned.items()}
            if settings.learn_tau
            else {}
        )
        self._tau_range = (min((TAU_RANGE[0], *starts)), max((TAU_RANGE[1], *starts)))

    @classmethod
    def needs(cls, settings: MethodSettings) -> Needs:
        assert isinstance(settings, MsdcrdSettings)
        return Needs(stages=() if settings.layers == "last" else tuple(settings.layers))

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """As `Method.forward`. With several processes the negatives are those of the whole batch, each
        process gives the loss of its own images, and every process must hold equally many."""
        settings = self.settings
        with torch.autocast(student.logits.device.type, enabled=False):
            tau_sample = self._temperature("sample", settings.tau_sample)
            tau_feature = self._temperature("feature", settings.tau_feature)
            loss = student.logits.new_zeros((), dtype=torch.float32)
            for layer in self.layers:
                loss = loss + layer(student, teacher, batch, tau_sample, tau_feature)
            if settings.lambda_kd > 0.0:
                kd = kd_loss(student.logits, teacher.logits, settings.kd_temperature)
                loss = loss + settings.lambda_kd * kd
        return loss

    def _temperature(self, which: str, fixed: float) -> Tensor | float:
        if which not in self.log_tau:
            return fixed
        # Clamped before its use, not in the graph: a clamp in the graph has no gradient at the bound.
        low, high = self._tau_range
        with torch.no_grad():
            self.log_tau[which].clamp_(math.log(low), math.log(high))
        return self.log_tau[which].exp()


class ContrastLayer(nn.Module):
    """The contrastive terms at one layer: windows, projectors, both losses."""

    scale_weights: Tensor
    overlapping: Tensor | None

    def __init__(
        self, settings: MsdcrdSettings, number: int | None, student: FeatureSpec, teacher: FeatureSpec
    ) -> None:
        super().__init__()
        self.settings = settings
        self.number = number
        student_channels, *student_size = student.shape_of(number, "student")
        teacher_channels, *teacher_size = teacher.shape_of(number, "teacher")
        sizes = (student_size[0], student_size[1]), (teacher_size[0], teacher_size[1])
        regions = windows(cut(settings.grids, *sizes), settings.window_stride)
        if settings.selection != "none":
            regions = distinct(regions, *sizes)
        self.regions = tuple(regions)
        self.student_pool = WindowPool(regions, *sizes[0], settings.pool)
        self.teacher_pool = WindowPool(regions, *sizes[1], settings.pool)
        self.judge_pool: WindowPool | None = None
        if settings.selection in ("sdd", "topk") and not (number is None and settings.pool == "avg"):
            _, height, width = teacher.shape_of(None, "teacher")
            self.judge_pool = WindowPool(regions, height, width)
        self.student_projector, self.teacher_projector = _projectors(
            settings, student_channels, teacher_channels
        )
        self.register_buffer("scale_weights", _scale_weights(settings, regions), persistent=False)
        overlapping = None
        if settings.overlap_iou is not None:
            overlapping = intersection_over_union(regions) >= settings.overlap_iou
        self.register_buffer("overlapping", overlapping, persistent=False)

    def forward(
        self,
        student: Features,
        teacher: Features,
        batch: Batch,
        tau_sample: Tensor | float,
        tau_feature: Tensor | float,
    ) -> Tensor:
        settings, labels = self.settings, batch.labels
        rank, world = place()
        images = len(labels)
        offset = rank * images
        pooled_student = self.student_pool(student.layer(self.number))
        pooled_teacher = self.teacher_pool(teacher.layer(self.number)).detach()
        # Gathered before the projector: then all that needs a gradient is local.
        ours = contrast.unit(self.student_projector(pooled_student))
        theirs_of_all = contrast.unit(self.teacher_projector(gather(pooled_teacher)))
        theirs = theirs_of_all[offset : offset + images]

        weights, weights_of_all = self._weights(pooled_teacher, teacher, batch, world)
        # Over all processes, so that the mean of their losses is the loss of the whole batch.
        total = weights_of_all.sum() / world
        needs_all_of_ours = settings.alpha > 0.0 and settings.symmetric
        needs_all_of_ours |= settings.beta > 0.0 and settings.feature_axis == "channel"
        ours_of_all = gather_with_gradient(ours) if needs_all_of_ours else ours

        loss = ours.new_zeros(())
        if settings.alpha > 0.0:
            wise = contrast.sample_wise if settings.negatives == "per_region" else contrast.sample_wise_joint
            mask = self._sample_mask(labels, weights_of_all, offset)
            losses = wise(ours, theirs_of_all, tau_sample, offset, mask)
            if settings.symmetric:
                losses = losses + wise(theirs, ours_of_all, tau_sample, offset, mask)
            loss = loss + settings.alpha * (weights * losses).sum() / total
        if settings.beta > 0.0 and settings.feature_axis == "region":
            mask = self._feature_mask(weights)
            losses = contrast.feature_wise(ours, theirs, tau_feature, mask)
            if settings.symmetric:
                losses = losses + contrast.feature_wise(theirs, ours, tau_feature, mask)
            loss = loss + settings.beta * (weights * losses).sum() / total
        elif settings.beta > 0.0:
            losses = contrast.channel_wise(ours_of_all, theirs_of_all, tau_feature, weights_of_all)
            if settings.symmetric:
                losses = losses + contrast.channel_wise(
                    theirs_of_all, ours_of_all, tau_feature, weights_of_all
                )
            loss = loss + settings.beta * losses.mean()
        return loss

    def _weights(
        self, pooled_teacher: Tensor, teacher: Features, batch: Batch, world: int
    ) -> tuple[Tensor, Tensor]:
        """w[i,m] of this process's images (B, M), and of all images."""
        fixed, labels = self.scale_weights, batch.labels
        if self.settings.selection in ("none", "dedup"):
            return fixed.expand(len(labels), -1), fixed.expand(world * len(labels), -1)
        with torch.no_grad():
            judged = pooled_teacher if self.judge_pool is None else self.judge_pool(teacher.map)
            local = batch.teacher.local_logits(judged)
            if self.settings.selection == "sdd":
                locally_right = local.argmax(-1) == labels[:, None]
                globally_right = (teacher.logits.argmax(-1) == labels)[:, None]
                chosen = 1.0 + (locally_right != globally_right).float()
            else:
                confidence = local.softmax(-1).amax(-1)
                kept = min(self.settings.topk, len(self.regions))
                chosen = torch.zeros_like(confidence).scatter_(1, confidence.topk(kept, dim=1).indices, 1.0)
            weights = chosen * fixed
        return weights, gather(weights)

    def _sample_mask(self, labels: Tensor, weights_of_all: Tensor, offset: int) -> Tensor | None:
        """True where a candidate of the sample-wise loss is no negative; the shapes of `contrast`.

        The candidates are all images at the anchor's window, or (`joint`) all of their windows."""
        settings = self.settings
        joint = settings.negatives == "joint"
        images, (candidates, regions) = len(labels), weights_of_all.shape
        numbers = torch.arange(candidates, device=labels.device)
        own = numbers == numbers[offset : offset + images, None]
        masks: list[Tensor] = []  # each broadcasts to (anchor image, its window, image, window)
        if settings.exclude_same_class:
            same_class = labels[:, None] == gather(labels)
            masks.append((same_class & ~own)[:, None, :, None])
        if settings.selection == "topk":
            masks.append((weights_of_all == 0.0)[None, None])
        if joint and self.overlapping is not None:
            masks.append(own[:, None, :, None] & self.overlapping[None, :, None, :])
        if not masks:
            return None
        mask = masks[0]
        for further in masks[1:]:
            mask = mask | further
        if joint:
            return mask.expand(images, regions, candidates, regions).reshape(
                images * regions, candidates * regions
            )
        # Without `overlapping` no mask depends on the anchor's window.
        return mask[:, 0].permute(2, 0, 1).expand(-1, images, -1)

    def _feature_mask(self, weights: Tensor) -> Tensor | None:
        masks: list[Tensor] = []
        if self.overlapping is not None:
            masks.append(self.overlapping[None])
        if self.settings.selection == "topk":
            masks.append((weights == 0.0)[:, None, :])
        if not masks:
            return None
        return masks[0] if len(masks) == 1 else masks[0] | masks[1]


def _projectors(settings: MsdcrdSettings, student: int, teacher: int) -> tuple[nn.Module, nn.Module]:
    """h_S and h_T, which bring vectors of `student` and `teacher` channels to one length.

    They come after the pooling: average pooling and a linear layer may be swapped, and there are
    fewer windows than pixels."""
    if settings.projector == "none":
        if student != teacher:
            raise ModelError(
                "`projector: none` needs a student and a teacher with equally many channels",
                why=f"the student's map has {student}, the teacher's {teacher}",
                mend="set `projector: student_linear` for msdcrd",
            )
        return nn.Identity(), nn.Identity()
    if settings.projector == "both_128":
        return nn.Linear(student, EMBEDDING), nn.Linear(teacher, EMBEDDING)
    if settings.projector == "mlp":
        hidden = max(student, teacher)
        return nn.Sequential(nn.Linear(student, hidden), nn.GELU(), nn.Linear(hidden, teacher)), nn.Identity()
    return nn.Linear(student, teacher), nn.Identity()


def _scale_weights(settings: MsdcrdSettings, regions: list[Window]) -> Tensor:
    """(M,) float32. pyramid: a scale weighs 1, 1/2, 1/4, ... from the coarsest on, shared out evenly
    among its windows (the weights of ReviewKD's pyramid, Chen et al., 2021)."""
    if settings.scale_weights == "uniform":
        return torch.ones(len(regions))
    grids = [region.grid for region in regions]
    scales = sorted(set(grids))
    return torch.tensor([0.5 ** scales.index(grid) / grids.count(grid) for grid in grids])
