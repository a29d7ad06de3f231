"""Layers that bring a student's map to the shape of a teacher's, trained with the student."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from stages.methods.parts.ends import Shape
from stages.models.resampling import AreaResample, smaller

LARGEST_VALID = 5
"""A convolution without padding closes gaps of up to this less one pixel; beyond that its kernel is as
large as the map, and costs more than the student."""


class SteadyNorm(nn.BatchNorm2d):
    """Batch normalisation that takes a single value a channel, too: one image with a 1x1 map.

    Such a value has no spread of its own: it is normalised by the running statistics, and leaves
    them as they are.
    """

    def forward(self, input: Tensor) -> Tensor:
        if self.training and input.numel() == input.shape[1]:
            return functional.batch_norm(
                input,
                self.running_mean,
                self.running_var,
                self.weight,
                self.bias,
                training=False,
                eps=self.eps,
            )
        return super().forward(input)


def conv_regressor(student: Shape, teacher: Shape) -> tuple[nn.Module, AreaResample]:
    """FitNet's regressor as the CRD line of codes builds it: a convolution to the teacher's shape, batch
    norm, ReLU; and what the teacher's map goes through to meet it.

    Sizes alike: 1x1. The student's twice the teacher's: 3x3 with stride 2. Half of it: transposed 4x4
    with stride 2. A little larger (up to LARGEST_VALID - 1 pixels): a convolution without padding
    whose kernel takes the difference. Any other pair, our reading: the larger map is pooled down to
    the smaller by exact area, and 1x1.

    (B, *student) -> (B, C_T, H, W), and (B, *teacher) -> the same shape.
    """
    (ours, *size), (theirs, *wanted) = student, teacher
    (height, width), (tall, wide) = size, wanted
    kernel = (1 + height - tall, 1 + width - wide)
    there = AreaResample((tall, wide), (tall, wide))
    before: nn.Module = nn.Identity()
    layer: nn.Module
    if size == wanted:
        layer = nn.Conv2d(ours, theirs, 1, bias=False)
    elif (height, width) == (2 * tall, 2 * wide):
        layer = nn.Conv2d(ours, theirs, 3, stride=2, padding=1, bias=False)
    elif (2 * height, 2 * width) == (tall, wide):
        layer = nn.ConvTranspose2d(ours, theirs, 4, stride=2, padding=1, bias=False)
    elif min(kernel) >= 1 and max(kernel) <= LARGEST_VALID:
        layer = nn.Conv2d(ours, theirs, kernel, bias=False)
    else:
        before, there = _met((height, width), (tall, wide))
        layer = nn.Conv2d(ours, theirs, 1, bias=False)
    return nn.Sequential(before, layer, SteadyNorm(theirs), nn.ReLU()), there


def linear_regressor(student: Shape, teacher: Shape) -> tuple[nn.Module, AreaResample]:
    """A 1x1 convolution without bias, as in OFA-KD's code; the larger map is pooled down to the smaller
    by exact area. Shapes as `conv_regressor`'s."""
    here, there = _met(student[1:], teacher[1:])
    return nn.Sequential(here, nn.Conv2d(student[0], teacher[0], 1, bias=False)), there


def _met(one: tuple[int, int], other: tuple[int, int]) -> tuple[AreaResample, AreaResample]:
    size = smaller(one, other)
    return AreaResample(one, size), AreaResample(other, size)
