"""Losses of ofa, uhkd, pat and fbt written out in float64 from the equations of
docs/reference/methods.md: slow, plain.

Nothing of it is shared with the code it checks.
"""

from __future__ import annotations

import cmath
import math

import torch
from torch import Tensor

from tests.stages.methods.reference import dot, softmax, surprise, unit

Matrix = list[list[float]]
Maps = list[list[list[list[float]]]]


def ofa(student: Tensor, teacher: Tensor, labels: list[int], eps: float, form: str) -> float:
    """The OFA loss of logits (B, K): the mean over images."""
    total = 0.0
    for s, t, y in zip(student.double().tolist(), teacher.double().tolist(), labels, strict=True):
        p, q = softmax(t), softmax(s)
        for c in range(len(p)):
            one = 1.0 if c == y else 0.0
            if form == "code":
                factor = (p[c] + one) ** eps - one
            else:
                factor = (1.0 + p[c]) ** eps if c == y else p[c]
            total -= factor * math.log(q[c])
    return total / len(labels)


def info_nce(anchors: Matrix, candidates: Matrix, tau: float) -> float:
    """Each anchor is to be nearest to the candidate of its own number: the mean over anchors."""
    units = [unit(vector) for vector in candidates]
    total = 0.0
    for i, anchor in enumerate(anchors):
        scores = {(j, 0): dot(unit(anchor), candidate) / tau for j, candidate in enumerate(units)}
        total += surprise(scores, (i, 0))
    return total / len(anchors)


def spectral(student: Tensor, teacher: Tensor, weight: Tensor, block: int, representation: str) -> float:
    """Mean squared error of the layer-normalised low frequencies, the student's map convolved first."""
    convolved = torch.einsum("dc,bchw->bdhw", weight.double(), student.double())
    sides = [min(a, b) for a, b in zip(student.shape[-2:], teacher.shape[-2:], strict=True)]
    vertical, horizontal = ((min(block, side) - 1) // 2 for side in sides)
    errors = []
    for ours, theirs in zip(convolved.tolist(), teacher.double().tolist(), strict=True):
        left, right = (
            _normalised(_values(one, vertical, horizontal, representation)) for one in (ours, theirs)
        )
        errors += [(a - b) ** 2 for a, b in zip(left, right, strict=True)]
    return sum(errors) / len(errors)


def _values(channels: list[Matrix], vertical: int, horizontal: int, representation: str) -> list[float]:
    """What is compared of one image's spectra, channel by channel."""
    values = []
    for pixels in channels:
        for u in range(-vertical, vertical + 1):
            for v in range(horizontal + 1):
                found = _coefficient(pixels, u, v)
                both = [found.real, found.imag]
                values += both if representation == "complex" else [math.log(1.0 + abs(found))]
    return values


def _coefficient(pixels: Matrix, u: int, v: int) -> complex:
    height, width = len(pixels), len(pixels[0])
    turns = [
        pixels[h][w] * cmath.exp(-2j * math.pi * (u * h / height + v * w / width))
        for h in range(height)
        for w in range(width)
    ]
    return sum(turns) / math.sqrt(height * width)


def _normalised(values: list[float]) -> list[float]:
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((x - mean) ** 2 for x in values) / len(values) + 1e-5)
    return [(x - mean) / spread for x in values]


def attention(queries: Matrix, keys: Matrix, values: Matrix, heads: int) -> Matrix:
    """Self-attention of tokens (N, D), head by head, each with D / heads neighbouring channels."""
    width = len(queries[0]) // heads
    result: Matrix = [[] for _ in queries]
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        for n, query in enumerate(queries):
            shares = softmax([dot(query[part], key[part]) / math.sqrt(width) for key in keys])
            result[n] += [
                sum(a * value[part][d] for a, value in zip(shares, values, strict=True)) for d in range(width)
            ]
    return result


def positions(count: int, width: int) -> Matrix:
    """Vaswani et al. (2017), section 3.5."""
    return [
        [
            math.sin(n / 10000 ** (d / width)) if d % 2 == 0 else math.cos(n / 10000 ** ((d - 1) / width))
            for d in range(width)
        ]
        for n in range(count)
    ]


def stretched(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Each cell the mean of the area it covers, in float64."""
    images, channels, height, width = maps.shape
    result = torch.zeros(images, channels, *size, dtype=torch.float64)
    for row in range(size[0]):
        for column in range(size[1]):
            for h in range(height):
                for w in range(width):
                    tall = _shared(row, size[0], h, height)
                    wide = _shared(column, size[1], w, width)
                    result[:, :, row, column] += tall * wide * maps[:, :, h, w]
    return result


def _shared(cell: int, cells: int, pixel: int, pixels: int) -> float:
    """The share of the cell that lies on the pixel."""
    low, high = max(cell / cells, pixel / pixels), min((cell + 1) / cells, (pixel + 1) / pixels)
    return max(high - low, 0.0) * cells
