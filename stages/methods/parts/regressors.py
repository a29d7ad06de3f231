"""Layers that bring a student's map to the shape of a teacher's map; they are trained with the student."""

from __future__ import annotations

from torch import nn

from stages.methods.parts.batch_norm import SingleValueBatchNorm
from stages.methods.parts.stage_pairs import Shape
from stages.models.resampling import AreaResample, Size, smaller

MAX_VALID_KERNEL = 5
"""The largest kernel of a convolution without padding, which removes up to 4 pixels. A larger difference
would need a kernel about as large as the map, which costs more than the student."""


def convolutional_regressor(student: Shape, teacher: Shape) -> tuple[nn.Module, AreaResample]:
    """Build FitNet's regressor like the code of CRD: convolution, batch norm, ReLU.

    Equal sizes: 1x1. The student's size is twice the teacher's: 3x3 with stride 2. Half of it: transposed
    4x4 with stride 2. Up to MAX_VALID_KERNEL - 1 pixels larger: a convolution without padding whose
    kernel removes the difference. Any other pair is our reading: the larger map is pooled to the size
    of the smaller by exact area, followed by 1x1.

    Args:
        student: (C_S, H_S, W_S).
        teacher: (C_T, H_T, W_T).

    Returns:
        The regressor, (B, *student) to (B, C_T, H, W), and the resampling that brings the teacher's map
        to the same shape.
    """
    (student_channels, *student_size), (teacher_channels, *teacher_size) = student, teacher
    (height, width), (teacher_height, teacher_width) = student_size, teacher_size
    kernel = (1 + height - teacher_height, 1 + width - teacher_width)
    resample_teacher = AreaResample((teacher_height, teacher_width), (teacher_height, teacher_width))
    resample_student: nn.Module = nn.Identity()
    convolution: nn.Module
    if student_size == teacher_size:
        convolution = nn.Conv2d(student_channels, teacher_channels, 1, bias=False)
    elif (height, width) == (2 * teacher_height, 2 * teacher_width):
        convolution = nn.Conv2d(student_channels, teacher_channels, 3, stride=2, padding=1, bias=False)
    elif (2 * height, 2 * width) == (teacher_height, teacher_width):
        convolution = nn.ConvTranspose2d(
            student_channels, teacher_channels, 4, stride=2, padding=1, bias=False
        )
    elif min(kernel) >= 1 and max(kernel) <= MAX_VALID_KERNEL:
        convolution = nn.Conv2d(student_channels, teacher_channels, kernel, bias=False)
    else:
        resample_student, resample_teacher = _to_smaller_size(
            (height, width), (teacher_height, teacher_width)
        )
        convolution = nn.Conv2d(student_channels, teacher_channels, 1, bias=False)
    regressor = nn.Sequential(
        resample_student, convolution, SingleValueBatchNorm(teacher_channels), nn.ReLU()
    )
    return regressor, resample_teacher


def linear_regressor(student: Shape, teacher: Shape) -> tuple[nn.Module, AreaResample]:
    """Build a 1x1 convolution without bias, like OFA-KD's code.

    The larger map is pooled to the size of the smaller by exact area.

    Args:
        student: (C_S, H_S, W_S).
        teacher: (C_T, H_T, W_T).

    Returns:
        The regressor, (B, *student) to (B, C_T, H, W), and the resampling that brings the teacher's map
        to the same shape.
    """
    resample_student, resample_teacher = _to_smaller_size(student[1:], teacher[1:])
    convolution = nn.Conv2d(student[0], teacher[0], 1, bias=False)
    return nn.Sequential(resample_student, convolution), resample_teacher


def _to_smaller_size(student: Size, teacher: Size) -> tuple[AreaResample, AreaResample]:
    size = smaller(student, teacher)
    return AreaResample(student, size), AreaResample(teacher, size)
