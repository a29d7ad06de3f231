"""The contrastive terms of MSDCRD at one layer; the equations are in `stages.methods.msdcrd`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from pipeline.errors import ModelError
from stages.methods.base import Batch
from stages.methods.parts import contrastive_losses
from stages.methods.parts.contrastive_losses import unit_vectors
from stages.methods.parts.gathering import gather, gather_with_gradient, rank_and_world_size
from stages.methods.parts.map_locations import MapLocation
from stages.methods.parts.windows import (
    Pool,
    Window,
    WindowPool,
    intersection_over_union,
    limit_grids,
    sliding_windows,
    without_duplicates,
)
from stages.models.features import Features, FeatureSpec

Projector = Literal["student_linear", "none", "both_128", "mlp"]
Selection = Literal["none", "dedup", "sdd", "topk"]
Negatives = Literal["per_region", "joint"]
FeatureAxis = Literal["region", "channel"]
ScaleWeights = Literal["uniform", "pyramid"]

EMBEDDING = 128
"""Channels of the projector `both_128`, like the embedding of CRD (Tian et al., 2020)."""


class ContrastLayer(nn.Module):
    """Compute the sample-wise and the feature-wise loss at one layer.

    Args:
        location: Where the maps are read, the same in both networks.
        student: The student's shapes.
        teacher: The teacher's shapes.
        grids: Windows per axis at each scale.
        window_stride: Step between windows as a share of the window.
        pool: How a window becomes one vector.
        projector: How the student's vectors are brought to the length of the teacher's.
        alpha: Weight of the sample-wise loss.
        beta: Weight of the feature-wise loss.
        symmetric: Whether the direction anchored at the teacher is added.
        exclude_same_class: Whether images of the anchor's class are excluded from the negatives.
        feature_axis: What the feature-wise loss contrasts.
        negatives: Whether a softmax covers one window of all images, or all windows of all images.
        scale_weights: How much the windows of a scale count.
        selection: Which windows count.
        topk: Windows per image of the selection `topk`.
        overlap_iou: Windows that overlap at least this much are not negatives of each other; None: all are.

    Raises:
        ModelError: A network has no such map, or `projector` is "none" and the channels differ.
    """

    scale_weights: Tensor
    overlapping: Tensor | None

    def __init__(
        self,
        location: MapLocation,
        student: FeatureSpec,
        teacher: FeatureSpec,
        *,
        grids: Sequence[int],
        window_stride: float,
        pool: Pool,
        projector: Projector,
        alpha: float,
        beta: float,
        symmetric: bool,
        exclude_same_class: bool,
        feature_axis: FeatureAxis,
        negatives: Negatives,
        scale_weights: ScaleWeights,
        selection: Selection,
        topk: int,
        overlap_iou: float | None,
    ) -> None:
        super().__init__()
        self.location = location
        self.alpha, self.beta, self.symmetric = alpha, beta, symmetric
        self.exclude_same_class, self.feature_axis, self.negatives = (
            exclude_same_class,
            feature_axis,
            negatives,
        )
        self.selection, self.topk = selection, topk
        student_channels, *student_size = location.shape_in(student, "student")
        teacher_channels, *teacher_size = location.shape_in(teacher, "teacher")
        sizes = (student_size[0], student_size[1]), (teacher_size[0], teacher_size[1])
        regions = sliding_windows(limit_grids(grids, *sizes), window_stride)
        if selection != "none":
            regions = without_duplicates(regions, *sizes)
        self.regions = tuple(regions)
        self.student_pool = WindowPool(regions, *sizes[0], pool)
        self.teacher_pool = WindowPool(regions, *sizes[1], pool)
        # The classifier judges windows of the final map; None where `teacher_pool` computes these already.
        self.judge_pool: WindowPool | None = None
        if selection in ("sdd", "topk") and not (location == MapLocation() and pool == "avg"):
            _, height, width = MapLocation().shape_in(teacher, "teacher")
            self.judge_pool = WindowPool(regions, height, width)
        self.student_projector, self.teacher_projector = _projectors(
            projector, student_channels, teacher_channels
        )
        self.register_buffer("scale_weights", _scale_weights(scale_weights, regions), persistent=False)
        overlapping = None
        if overlap_iou is not None:
            overlapping = intersection_over_union(regions) >= overlap_iou
        self.register_buffer("overlapping", overlapping, persistent=False)

    @override
    def forward(
        self,
        student: Features,
        teacher: Features,
        batch: Batch,
        tau_sample: Tensor | float,
        tau_feature: Tensor | float,
    ) -> Tensor:
        """Compute alpha * L_SW + beta * L_FW of this process's images.

        Args:
            student: Features of B images.
            teacher: Features of the same images, without gradient.
            batch: Labels and classifiers of this step.
            tau_sample: Temperature of the sample-wise loss.
            tau_feature: Temperature of the feature-wise loss.

        Returns:
            A float32 scalar; its mean over processes is the loss of the whole batch.
        """
        labels = batch.labels
        rank, world = rank_and_world_size()
        images = len(labels)
        offset = rank * images
        pooled_student = self.student_pool(self.location.map_in(student))
        pooled_teacher = self.teacher_pool(self.location.map_in(teacher)).detach()
        # Gathered before the projector: everything that needs a gradient is then local.
        student_vectors = unit_vectors(self.student_projector(pooled_student))
        all_teacher_vectors = unit_vectors(self.teacher_projector(gather(pooled_teacher)))
        teacher_vectors = all_teacher_vectors[offset : offset + images]

        weights, all_weights = self._weights(pooled_teacher, teacher, batch, world)
        # Over all processes, so that the mean of their losses is the loss of the whole batch.
        total = all_weights.sum() / world
        needs_all_student_vectors = (self.alpha > 0.0 and self.symmetric) or (
            self.beta > 0.0 and self.feature_axis == "channel"
        )
        all_student_vectors = (
            gather_with_gradient(student_vectors) if needs_all_student_vectors else student_vectors
        )

        loss = student_vectors.new_zeros(())
        if self.alpha > 0.0:
            sample_losses = (
                contrastive_losses.sample_wise_losses
                if self.negatives == "per_region"
                else contrastive_losses.joint_sample_wise_losses
            )
            mask = self._sample_mask(labels, all_weights, offset)
            losses = sample_losses(student_vectors, all_teacher_vectors, tau_sample, offset, mask)
            if self.symmetric:
                losses = losses + sample_losses(
                    teacher_vectors, all_student_vectors, tau_sample, offset, mask
                )
            loss = loss + self.alpha * (weights * losses).sum() / total
        if self.beta > 0.0 and self.feature_axis == "region":
            mask = self._feature_mask(weights)
            feature_losses = contrastive_losses.feature_wise_losses
            losses = feature_losses(student_vectors, teacher_vectors, tau_feature, mask)
            if self.symmetric:
                losses = losses + feature_losses(teacher_vectors, student_vectors, tau_feature, mask)
            loss = loss + self.beta * (weights * losses).sum() / total
        elif self.beta > 0.0:
            channel_losses = contrastive_losses.channel_wise_losses
            losses = channel_losses(all_student_vectors, all_teacher_vectors, tau_feature, all_weights)
            if self.symmetric:
                losses = losses + channel_losses(
                    all_teacher_vectors, all_student_vectors, tau_feature, all_weights
                )
            loss = loss + self.beta * losses.mean()
        return loss

    def _weights(
        self, pooled_teacher: Tensor, teacher: Features, batch: Batch, world: int
    ) -> tuple[Tensor, Tensor]:
        """Compute w[i,m] of this process's images, (B, M), and of all images, (N, M)."""
        labels = batch.labels
        if self.selection in ("none", "dedup"):
            return (
                self.scale_weights.expand(len(labels), -1),
                self.scale_weights.expand(world * len(labels), -1),
            )
        with torch.no_grad():
            vectors = pooled_teacher if self.judge_pool is None else self.judge_pool(teacher.map)
            logits = batch.teacher.local_logits(vectors)
            if self.selection == "sdd":
                locally_right = logits.argmax(-1) == labels[:, None]
                globally_right = (teacher.logits.argmax(-1) == labels)[:, None]
                selected = 1.0 + (locally_right != globally_right).float()
            else:
                confidence = logits.softmax(-1).amax(-1)
                count = min(self.topk, len(self.regions))
                best = confidence.topk(count, dim=1).indices
                selected = torch.zeros_like(confidence).scatter_(1, best, 1.0)
            weights = selected * self.scale_weights
        return weights, gather(weights)

    def _sample_mask(self, labels: Tensor, all_weights: Tensor, offset: int) -> Tensor | None:
        """Mark the candidates of the sample-wise loss that are not negatives, in the losses' shapes.

        The candidates are all images at the anchor's window, or (`joint`) all windows of all images.
        """
        joint = self.negatives == "joint"
        images, (candidates, regions) = len(labels), all_weights.shape
        numbers = torch.arange(candidates, device=labels.device)
        same_image = numbers == numbers[offset : offset + images, None]
        masks: list[Tensor] = []  # each broadcasts to (anchor image, its window, image, window)
        if self.exclude_same_class:
            same_class = labels[:, None] == gather(labels)
            masks.append((same_class & ~same_image)[:, None, :, None])
        if self.selection == "topk":
            masks.append((all_weights == 0.0)[None, None])
        if joint and self.overlapping is not None:
            masks.append(same_image[:, None, :, None] & self.overlapping[None, :, None, :])
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
        """Mark the candidates of the feature-wise loss that are not negatives: (B or 1, M or 1, M)."""
        masks: list[Tensor] = []
        if self.overlapping is not None:
            masks.append(self.overlapping[None])
        if self.selection == "topk":
            masks.append((weights == 0.0)[:, None, :])
        if not masks:
            return None
        return masks[0] if len(masks) == 1 else masks[0] | masks[1]


def _projectors(projector: Projector, student: int, teacher: int) -> tuple[nn.Module, nn.Module]:
    """Build h_S and h_T, which bring vectors of `student` and `teacher` channels to one length.

    They follow the pooling: average pooling and a linear layer commute, and there are fewer windows
    than pixels.
    """
    if projector == "none":
        if student != teacher:
            raise ModelError(
                "`projector: none` needs a student and a teacher with equally many channels",
                why=f"the student's map has {student}, the teacher's {teacher}",
                hint="set `projector: student_linear` for msdcrd",
            )
        return nn.Identity(), nn.Identity()
    if projector == "both_128":
        return nn.Linear(student, EMBEDDING), nn.Linear(teacher, EMBEDDING)
    if projector == "mlp":
        hidden = max(student, teacher)
        return nn.Sequential(nn.Linear(student, hidden), nn.GELU(), nn.Linear(hidden, teacher)), nn.Identity()
    return nn.Linear(student, teacher), nn.Identity()


def _scale_weights(kind: ScaleWeights, regions: Sequence[Window]) -> Tensor:
    """Compute the windows' weights, (M,) float32.

    pyramid: the scales weigh 1, 1/2, 1/4, ... from the coarsest, divided evenly among their windows (the
    weights of ReviewKD's pyramid, Chen et al., 2021).
    """
    if kind == "uniform":
        return torch.ones(len(regions))
    grids = [region.grid for region in regions]
    scales = sorted(set(grids))
    return torch.tensor([0.5 ** scales.index(grid) / grids.count(grid) for grid in grids])
