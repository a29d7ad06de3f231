"""fitnet, reviewkd and simkd written loop by loop in float64 from the equations of docs/reference/methods.md.

Arrays are numpy's, (B, C, H, W), but every sum is a loop over indices.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from torch import Tensor

Maps = np.ndarray


def array(tensor: Tensor) -> Maps:
    found: Maps = tensor.detach().double().numpy()
    return found


def convolved(maps: Maps, kernel: Maps, stride: int = 1, padding: int = 0, bias: Maps | None = None) -> Maps:
    """kernel (O, C, K, L)."""
    images, _, height, width = maps.shape
    outputs, channels, tall, wide = kernel.shape
    rows, columns = (height + 2 * padding - tall) // stride + 1, (width + 2 * padding - wide) // stride + 1
    made = np.zeros((images, outputs, rows, columns))
    for b, o, r, c in np.ndindex(*made.shape):
        total = 0.0 if bias is None else float(bias[o])
        for i, k, m in np.ndindex(channels, tall, wide):
            row, column = r * stride + k - padding, c * stride + m - padding
            if 0 <= row < height and 0 <= column < width:
                total += float(kernel[o, i, k, m] * maps[b, i, row, column])
        made[b, o, r, c] = total
    return made


def spread(maps: Maps, kernel: Maps, stride: int, padding: int) -> Maps:
    """The transposed convolution: each pixel is spread over what the kernel reaches. kernel (C, O, K, L)."""
    images, _, height, width = maps.shape
    channels, outputs, tall, wide = kernel.shape
    rows, columns = (height - 1) * stride - 2 * padding + tall, (width - 1) * stride - 2 * padding + wide
    made = np.zeros((images, outputs, rows, columns))
    for b, i, r, c in np.ndindex(images, channels, height, width):
        for o, k, m in np.ndindex(outputs, tall, wide):
            row, column = r * stride + k - padding, c * stride + m - padding
            if 0 <= row < rows and 0 <= column < columns:
                made[b, o, row, column] += kernel[i, o, k, m] * maps[b, i, r, c]
    return made


def normalised(maps: Maps, eps: float = 1e-5) -> Maps:
    """Batch norm with gain 1 and offset 0, by the batch's own mean and (biased) variance."""
    images, channels, height, width = maps.shape
    made = np.empty_like(maps)
    for channel in range(channels):
        values = [float(maps[b, channel, r, c]) for b, r, c in np.ndindex(images, height, width)]
        mean = sum(values) / len(values)
        variance = sum((value - mean) ** 2 for value in values) / len(values)
        made[:, channel] = (maps[:, channel] - mean) / math.sqrt(variance + eps)
    return made


def resized(maps: Maps, size: tuple[int, int]) -> Maps:
    """Each pixel is the mean of the area that it covers; overlaps in exact fractions."""
    images, channels, *source = maps.shape
    made = np.zeros((images, channels, *size))
    for row, column in np.ndindex(*size):
        for (r, tall), (c, wide) in itertools.product(
            _covered(row, size[0], source[0]), _covered(column, size[1], source[1])
        ):
            made[:, :, row, column] += maps[:, :, r, c] * float(tall * wide)
    return made


def _covered(cell: int, cells: int, pixels: int) -> list[tuple[int, Fraction]]:
    """The pixels that a cell covers, each with its share of the cell."""
    shares = []
    for pixel in range(pixels):
        low = max(Fraction(cell, cells), Fraction(pixel, pixels))
        high = min(Fraction(cell + 1, cells), Fraction(pixel + 1, pixels))
        if high > low:
            shares.append((pixel, (high - low) * cells))
    return shares


def squared(one: Maps, other: Maps) -> float:
    """Mean squared difference."""
    assert one.shape == other.shape
    total = sum((float(one[place]) - float(other[place])) ** 2 for place in np.ndindex(*one.shape))
    return total / one.size


def pyramid(one: Maps, other: Maps) -> float:
    """HCL of square maps whose side the levels divide: full, 4, 2, 1 with weights 1, 1/2, 1/4, 1/8."""
    side = one.shape[2]
    loss, weight, total = squared(one, other), 1.0, 1.0
    for level in (4, 2, 1):
        if level < side:
            weight /= 2
            loss += weight * squared(resized(one, (level, level)), resized(other, (level, level)))
            total += weight
    return loss / total


def sigmoid(value: float) -> float:
    return 1.0 / (1.0 + math.exp(-value))


def reviewed(
    student: Sequence[Maps],
    teacher: Sequence[Maps],
    layers: Sequence[tuple[Maps, Maps, Maps | None, Maps | None]],
) -> float:
    """ReviewKD from the deepest level on; layers: kernels of c1 and c2, kernel and bias of the gates."""
    total = 0.0
    fused: Maps | None = None
    for maps, wanted, (enter, leave, gates, bias) in zip(student, teacher, layers, strict=True):
        own = normalised(convolved(maps, enter))
        if fused is not None:
            assert gates is not None
            deeper = resized(fused, (own.shape[2], own.shape[3]))
            scores = convolved(np.concatenate([own, deeper], axis=1), gates, bias=bias)
            mixed = np.empty_like(own)
            for b, c, row, column in np.ndindex(*own.shape):
                mixed[b, c, row, column] = (
                    sigmoid(scores[b, 0, row, column]) * own[b, c, row, column]
                    + sigmoid(scores[b, 1, row, column]) * deeper[b, c, row, column]
                )
            own = mixed
        fused = resized(own, (wanted.shape[2], wanted.shape[3]))
        total += pyramid(normalised(convolved(fused, leave, padding=1)), wanted)
    return total
