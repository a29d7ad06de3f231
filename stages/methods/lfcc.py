"""LFCC: contrast of low-frequency components of intermediate features, in our reading of the abstract.

Source: arXiv 2405.18524, for pairs of networks of different families. Only its abstract is available to
us: multi-scale low-pass filters of two kinds, one of them average pooling, reduce intermediate features of
both networks to their low frequencies in a compact space; there a contrast of samples brings teacher and
student of one image together and separates different images. The other filter, the stages, the
temperature and the weights are not available to us: what follows is our reading, and each is an argument.

For each pair l of stage ends, the deepest of one network with the deepest of the other, and each scale g:

    P_g      = low-pass to g x g cells                       the teacher's is average pooling, by exact area
    q[i,l,g] = norm( h_S,l,g( P_g(F_S,l)[i] ) )              concatenated cells, one linear layer, unit length
    v[i,l,g] = norm( h_T,l,g( P_g(F_T,l)[i] ) )              proj_dim channels, float32
    L        = mean over l, g of  - (1/B) sum_i log softmax_j( <q[i,l,g], v[j,l,g]> / tau )[i]

With `unit="cell"` each of the g x g cells is a vector with a contrast of its own, and the mean is over
cells first; the cells of a scale then share the layers h.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from typing_extensions import override

from stages.methods.base import Batch, Method
from stages.methods.parts.argument_checks import (
    require_above,
    require_at_least,
    require_grids,
    require_odd,
    require_one_of,
    require_stage_ends,
)
from stages.methods.parts.contrastive_losses import sample_wise_losses, unit_vectors
from stages.methods.parts.gathering import gather, gather_with_gradient, rank_and_world_size
from stages.methods.parts.lowpass import Filter, LowPass
from stages.methods.parts.map_locations import MapLocation
from stages.methods.parts.stage_pairs import paired_stage_ends
from stages.methods.parts.windows import limit_grids
from stages.methods.settings.lfcc import SHALLOWEST_END
from stages.models.features import Features, FeatureSpec, Needs

ContrastUnit = Literal["concat", "cell"]


class Lfcc(Method):
    """Contrast the low frequencies of the maps at the stage ends within the batch.

    The loss is given in the module's equations. Learns the projections and, with the filter
    "learnable_depthwise", the student's filters.

    Args:
        student: The student's shapes.
        teacher: The teacher's shapes.
        stages: Stage ends counted from the deepest (-1 to -4), or "ends": all that both networks have.
        grids: Cells per axis at each scale, limited to the smaller map.
        filter: Low-pass of the student's maps; the teacher's are always average-pooled.
        sigma: Standard deviation of the filter "gaussian", in cells, at least 0.05.
        kernel: Side of the filter "learnable_depthwise", in pixels, odd and at least 3.
        unit: "concat": all cells of a scale are one vector; "cell": each cell is a vector.
        tau: Temperature.
        proj_dim: Channels that the vectors of both networks are projected to.
        symmetric: Whether the direction anchored at the teacher is added.

    Raises:
        ModelError: A network does not have these stage ends.
        ValueError: An argument is out of range.

    Example:
        >>> import timm, torch
        >>> from stages.methods.lfcc import Lfcc
        >>> from stages.methods.observed import run_networks
        >>> from stages.models.observer import Observer
        >>> student = Observer(timm.create_model("test_byobnet"), Lfcc.needs())
        >>> teacher = Observer(timm.create_model("test_resnet"), Lfcc.needs()).eval()
        >>> method = Lfcc(student.spec(64, 3), teacher.spec(64, 3), stages=(-1, -2), proj_dim=32)
        >>> images, labels = torch.rand(4, 3, 64, 64), torch.tensor([1, 0, 2, 1])
        >>> loss = method(*run_networks(student, teacher, images, labels))
        >>> loss.backward()
    """

    name = "lfcc"

    weights: Tensor

    def __init__(
        self,
        student: FeatureSpec,
        teacher: FeatureSpec,
        *,
        stages: Sequence[int] | Literal["ends"] = "ends",
        grids: Sequence[int] = (1, 2, 4),
        filter: Filter = "avgpool",
        sigma: float = 0.5,
        kernel: int = 3,
        unit: ContrastUnit = "concat",
        tau: float = 0.1,
        proj_dim: int = 128,
        symmetric: bool = False,
    ) -> None:
        super().__init__(student, teacher)
        require_grids(grids)
        require_one_of(get_args(Filter), filter=filter)
        require_at_least(0.05, sigma=sigma)
        require_at_least(3, kernel=kernel)
        require_odd(kernel=kernel)
        require_one_of(get_args(ContrastUnit), unit=unit)
        require_above(0.0, tau=tau)
        require_at_least(1, proj_dim=proj_dim)
        if isinstance(stages, str):
            require_one_of(("ends",), stages=stages)
            numbers = list(range(-len(paired_stage_ends("lfcc", student, teacher)), 0))
        else:
            require_stage_ends("stages", stages, lowest=SHALLOWEST_END)
            numbers = sorted(stages)
            paired_stage_ends("lfcc", student, teacher, at_least=-numbers[0])
        self.tau, self.symmetric = tau, symmetric
        levels = [
            Level(
                MapLocation(end=number),
                student,
                teacher,
                grids=grids,
                filter=filter,
                sigma=sigma,
                kernel=kernel,
                unit=unit,
                proj_dim=proj_dim,
            )
            for number in numbers
        ]
        self.levels = nn.ModuleList(levels)
        shares = torch.cat([level.shares for level in levels]) / len(levels)
        self.register_buffer("weights", shares, persistent=False)

    @classmethod
    @override
    def needs(cls, **_arguments: Any) -> Needs:
        """List the stage ends; see `Method.needs`."""
        return Needs(ends=True)

    @override
    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """Compute the loss of one step; see `Method.forward`.

        With several processes the negatives are those of the whole batch, each process returns the loss
        of its own images, and every process must hold the same number of images.
        """
        with torch.autocast(student.logits.device.type, enabled=False):
            vectors = [level(student, teacher) for level in self.levels]
            # All levels and scales in one contrast.
            student_vectors, all_teacher_vectors = (
                torch.cat(parts, 1) for parts in zip(*vectors, strict=True)
            )
            images = len(student_vectors)
            first = rank_and_world_size()[0] * images
            losses = sample_wise_losses(student_vectors, all_teacher_vectors, self.tau, first, None)
            if self.symmetric:
                teacher_vectors = all_teacher_vectors[first : first + images]
                all_student_vectors = gather_with_gradient(student_vectors)
                losses = losses + sample_wise_losses(
                    teacher_vectors, all_student_vectors, self.tau, first, None
                )
            return (losses * self.weights).sum(1).mean()


class Level(nn.Module):
    """Filter and project the maps of one pair of stage ends.

    Args:
        location: The stage end.
        student: The student's shapes.
        teacher: The teacher's shapes.
        grids: Cells per axis at each scale.
        filter: Low-pass of the student's maps.
        sigma: Standard deviation of the filter "gaussian", in cells.
        kernel: Side of the filter "learnable_depthwise", in pixels.
        unit: Whether a vector is all cells of a scale or one cell.
        proj_dim: Channels of the projected vectors.

    Attributes:
        shares: (U,) float32, the weight of each of the U vectors, with sum 1.
    """

    def __init__(
        self,
        location: MapLocation,
        student: FeatureSpec,
        teacher: FeatureSpec,
        *,
        grids: Sequence[int],
        filter: Filter,
        sigma: float,
        kernel: int,
        unit: ContrastUnit,
        proj_dim: int,
    ) -> None:
        super().__init__()
        self.location = location
        student_shape = location.shape_in(student, "student")
        teacher_shape = location.shape_in(teacher, "teacher")
        grids = limit_grids(grids, student_shape[1:], teacher_shape[1:])
        cells = [grid**2 for grid in grids]
        # By scale: the number of vectors, and of cells in each.
        self.forms = [(1, count) if unit == "concat" else (count, 1) for count in cells]
        self.student_filter = LowPass(filter, grids, student_shape, sigma=sigma, kernel=kernel)
        self.teacher_filter = LowPass("avgpool", grids, teacher_shape)
        self.student_projectors = self._projectors(student_shape[0], proj_dim)
        self.teacher_projectors = self._projectors(teacher_shape[0], proj_dim)
        self.shares = torch.cat([torch.full((n,), 1.0 / (n * len(grids))) for n, _ in self.forms])

    @override
    def forward(self, student: Features, teacher: Features) -> tuple[Tensor, Tensor]:
        """Compute the vectors of both networks.

        Args:
            student: Features of B images.
            teacher: Features of the same images, without gradient.

        Returns:
            (B, U, D) of the student's images and (N, U, D) of the teacher's images of all processes, of
            unit length.
        """
        # Gathered before the projection: everything that needs a gradient is then local.
        all_teacher_cells = gather(self.teacher_filter(self.location.map_in(teacher)))
        student_cells = self.student_filter(self.location.map_in(student))
        return (
            self._project(student_cells, self.student_projectors),
            self._project(all_teacher_cells, self.teacher_projectors),
        )

    def _projectors(self, channels: int, proj_dim: int) -> nn.ModuleList:
        return nn.ModuleList(nn.Linear(cells * channels, proj_dim) for _, cells in self.forms)

    def _project(self, cells: Tensor, projectors: nn.ModuleList) -> Tensor:
        scales = torch.split(cells, [vectors * inside for vectors, inside in self.forms], dim=1)
        projected = [
            projector(scale.reshape(len(scale), vectors, -1))
            for scale, projector, (vectors, _) in zip(scales, projectors, self.forms, strict=True)
        ]
        return unit_vectors(torch.cat(projected, 1))
