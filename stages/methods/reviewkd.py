"""ReviewKD: deeper maps of the student help its shallower maps to match the teacher's.

Source: Chen et al., "Distilling Knowledge via Knowledge Review" (2021), sections 3.2 and 3.3. With F_S[l],
F_T[l] the maps at the stage ends, level L the deepest; c1 (1x1) and c2 (3x3) convolutions with batch norm;
a (1x1) a convolution with a sigmoid that computes one gate per pixel for each of two maps:

    X[L]   = c1(F_S[L])
    X[l]   = g1 * c1(F_S[l]) + g2 * up(X[l+1]),     (g1, g2) = a( [c1(F_S[l]), up(X[l+1])] )     "ABF"
    X[l]   is resampled to the size of F_T[l]
    L      = sum over levels of HCL( c2(X[l]), F_T[l] )              HCL: `pyramid.pyramid_loss`

The teacher's maps are those before the activation that ends their stage, the student's those after it,
like in the official CIFAR code. The pooled vectors are the deepest level, a 1x1 map each, as there.

Our reading, where the official code lists the sizes of each pair of networks: the levels are paired from
the deepest, and where one network has more levels its shallowest are left out. Maps are resampled by
exact area: this repeats pixels where the official code's nearest interpolation does (enlargement by a
whole factor), and averages where that would drop pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from stages.methods.base import Batch, Method
from stages.methods.parts.argument_checks import require_at_least
from stages.methods.parts.batch_norm import SingleValueBatchNorm
from stages.methods.parts.pyramid import pyramid_loss
from stages.methods.parts.stage_pairs import Shape, paired_stage_ends
from stages.models.features import Features, FeatureSpec, Needs
from stages.models.resampling import AreaResample, Size


class Reviewkd(Method):
    """Match the teacher's maps of all stages with fusions of the student's maps, from the deepest.

    The loss is given in the module's equations. Learns a fusion for each level.

    Args:
        student: The student's shapes.
        teacher: The teacher's shapes.
        channels: The most channels of the fused maps X.
        pooled_vector: Whether the pooled vectors are the deepest level.
        student_before_activation: Whether the student's maps, too, are read before their activation.

    Raises:
        ModelError: A network has no stage ends.
        ValueError: `channels` is below 1.

    Example:
        >>> import timm, torch
        >>> from stages.methods.observed import run_networks
        >>> from stages.methods.reviewkd import Reviewkd
        >>> from stages.models.observer import Observer
        >>> student = Observer(timm.create_model("test_byobnet"), Reviewkd.needs())
        >>> teacher = Observer(timm.create_model("test_resnet"), Reviewkd.needs()).eval()
        >>> method = Reviewkd(student.spec(64, 3), teacher.spec(64, 3), channels=64)
        >>> images, labels = torch.rand(4, 3, 64, 64), torch.tensor([1, 0, 2, 1])
        >>> loss = method(*run_networks(student, teacher, images, labels))
        >>> loss.backward()
    """

    name = "reviewkd"

    def __init__(
        self,
        student: FeatureSpec,
        teacher: FeatureSpec,
        *,
        channels: int = 512,
        pooled_vector: bool = True,
        student_before_activation: bool = False,
    ) -> None:
        super().__init__(student, teacher)
        require_at_least(1, channels=channels)
        self.pooled_vector = pooled_vector
        self.student_before_activation = student_before_activation
        levels = paired_stage_ends(self.name, student, teacher)[::-1]
        if pooled_vector:
            levels.insert(0, ((student.embedding, 1, 1), (teacher.embedding, 1, 1)))
        deepest_channels = levels[0][0][0]
        fusions: list[Fusion] = []
        for student_shape, teacher_shape in levels:
            deeper = fusions[-1].size if fusions else None
            fusions.append(Fusion(student_shape, teacher_shape, min(channels, deepest_channels), deeper))
        self.fusions = nn.ModuleList(fusions)

    @classmethod
    @override
    def needs(cls, **_arguments: Any) -> Needs:
        """List the stage ends, also before their activation; see `Method.needs`."""
        return Needs(ends=True, before_activation=True)

    @override
    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """Compute the loss of one step; see `Method.forward`."""
        student_ends = student.ends_before if self.student_before_activation else student.ends
        levels = zip(
            self.fusions,
            self._levels(student_ends, student),
            self._levels(teacher.ends_before, teacher),
            strict=True,
        )
        loss = student.logits.new_zeros((), dtype=torch.float32)
        fused: Tensor | None = None
        with torch.autocast(student.logits.device.type, enabled=False):
            for fusion, student_map, teacher_map in levels:
                matched, fused = fusion(student_map.float(), fused)
                loss = loss + pyramid_loss(matched, teacher_map.detach())
        return loss

    def _levels(self, ends: tuple[Tensor, ...], features: Features) -> list[Tensor]:
        """List as many maps as there are fusions, (B, C, H, W) each, the deepest first."""
        vector = [features.embedding[:, :, None, None]] if self.pooled_vector else []
        return [*vector, *reversed(ends)][: len(self.fusions)]


class Fusion(nn.Module):
    """Fuse the student's map of one level with the fused map of the next deeper level.

    Args:
        student: (C_S, H_S, W_S) of the student's map.
        teacher: (C_T, H_T, W_T) of the teacher's map.
        channels: Channels of the fused maps.
        deeper: The size of the fused map of the next deeper level; None for the deepest.

    Attributes:
        size: (H_T, W_T), the size of this level's fused map.
    """

    def __init__(self, student: Shape, teacher: Shape, channels: int, deeper: Size | None) -> None:
        super().__init__()
        student_size, self.size = student[1:], teacher[1:]
        self.enter = _convolution(student[0], channels, 1)
        self.leave = _convolution(channels, teacher[0], 3)
        self.resize = AreaResample(student_size, self.size)
        self.bring = None if deeper is None else AreaResample(deeper, student_size)
        self.gates = None if deeper is None else nn.Sequential(nn.Conv2d(2 * channels, 2, 1), nn.Sigmoid())

    @override
    def forward(self, maps: Tensor, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
        """Compute one level.

        Args:
            maps: (B, *student) float32.
            deeper: (B, channels, *deeper), the fused map of the next deeper level; None for the deepest.

        Returns:
            c2(X), (B, *teacher), and X, (B, channels, H_T, W_T).
        """
        fused = self.enter(maps)
        if self.gates is not None and self.bring is not None and deeper is not None:
            resampled = self.bring(deeper)
            own_gate, deeper_gate = self.gates(torch.cat([fused, resampled], dim=1)).split(1, dim=1)
            fused = own_gate * fused + deeper_gate * resampled
        fused = self.resize(fused)
        return self.leave(fused), fused


def _convolution(in_channels: int, out_channels: int, kernel: int) -> nn.Sequential:
    """Build a convolution with batch norm, initialized like in the official code.

    a = 1 is the gain of a layer without activation.
    """
    convolution = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_uniform_(convolution.weight, a=1)
    return nn.Sequential(convolution, SingleValueBatchNorm(out_channels))
