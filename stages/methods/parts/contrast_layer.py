"""The contrastive terms of MSDCRD at one layer; the equations are those of `stages.methods.msdcrd`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.errors import ModelError
from stages.methods.base import Batch
from stages.methods.parts import contrast, gathering
from stages.methods.parts.gathering import gather, gather_with_gradient
from stages.methods.parts.places import Place
from stages.methods.parts.windows import (
    Window,
    WindowPool,
    cut,
    distinct,
    intersection_over_union,
    windows,
)
from stages.methods.settings import MsdcrdSettings
from stages.models.features import Features, FeatureSpec

EMBEDDING = 128
"""Channels of `both_128`, as CRD (Tian et al., 2020) embeds."""


class ContrastLayer(nn.Module):
    """Windows, projectors and both losses at one layer."""

    scale_weights: Tensor
    overlapping: Tensor | None

    def __init__(
        self, settings: MsdcrdSettings, place: Place, student: FeatureSpec, teacher: FeatureSpec
    ) -> None:
        super().__init__()
        self.settings = settings
        self.place = place
        student_channels, *student_size = place.shape(student, "student")
        teacher_channels, *teacher_size = place.shape(teacher, "teacher")
        sizes = (student_size[0], student_size[1]), (teacher_size[0], teacher_size[1])
        regions = windows(cut(settings.grids, *sizes), settings.window_stride)
        if settings.selection != "none":
            regions = distinct(regions, *sizes)
        self.regions = tuple(regions)
        self.student_pool = WindowPool(regions, *sizes[0], settings.pool)
        self.teacher_pool = WindowPool(regions, *sizes[1], settings.pool)
        self.judge_pool: WindowPool | None = None
        if settings.selection in ("sdd", "topk") and not (place == Place() and settings.pool == "avg"):
            _, height, width = Place().shape(teacher, "teacher")
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
        rank, world = gathering.place()
        images = len(labels)
        offset = rank * images
        pooled_student = self.student_pool(self.place.of(student))
        pooled_teacher = self.teacher_pool(self.place.of(teacher)).detach()
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
                hint="set `projector: student_linear` for msdcrd",
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
