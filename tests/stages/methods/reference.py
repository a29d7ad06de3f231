"""MSDCRD written loop by loop in float64 from the equations of docs/reference/methods.md: slow, and plain.

Nothing of it is shared with the code it checks: windows are laid, pooled and compared here anew.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from stages.methods.settings import MsdcrdSettings

Vector = list[float]
Project = Callable[[Vector], Vector]
Region = tuple[int, Fraction, Fraction, Fraction, Fraction]  # grid, top, left, bottom, right


@dataclass(frozen=True)
class Layer:
    """Maps (B, C, H, W) and projectors of one layer."""

    student: Tensor
    teacher: Tensor
    project_student: Project
    project_teacher: Project


@dataclass(frozen=True)
class Judge:
    """The teacher's final map (B, C, H, W), its logits (B, K), and its classifier."""

    map: Tensor
    logits: Tensor
    head: Project


def msdcrd(
    settings: MsdcrdSettings, layers: list[Layer], labels: list[int], judge: Judge, student_logits: Tensor
) -> float:
    total = 0.0
    for layer in layers:
        total += one_layer(settings, layer, labels, judge)
    return total + settings.lambda_kd * kd(student_logits, judge.logits, settings.kd_temperature)


def kd(student: Tensor, teacher: Tensor, temperature: float) -> float:
    total = 0.0
    for s, t in zip(student.double().tolist(), teacher.double().tolist(), strict=True):
        p, q = softmax([x / temperature for x in t]), softmax([x / temperature for x in s])
        total += sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))
    return temperature**2 * total / len(student)


def one_layer(settings: MsdcrdSettings, layer: Layer, labels: list[int], judge: Judge) -> float:
    sizes: list[tuple[int, ...]] = [
        tuple(layer.student.shape[-2:]),
        tuple(layer.teacher.shape[-2:]),
    ]
    regions = lay(settings, min(min(size) for size in sizes))
    if settings.selection != "none":
        regions = without_copies(regions, sizes)
    images, count = len(labels), len(regions)
    u = [
        [unit(layer.project_student(v)) for v in row] for row in pooled(settings.pool, layer.student, regions)
    ]
    v = [
        [unit(layer.project_teacher(z)) for z in row] for row in pooled(settings.pool, layer.teacher, regions)
    ]
    w = weights(settings, regions, labels, judge)
    whole = sum(sum(row) for row in w)

    def keeps(image: int, region: int) -> bool:
        return settings.selection != "topk" or w[image][region] > 0.0

    def overlap(m: int, n: int) -> bool:
        return settings.overlap_iou is not None and iou(regions[m], regions[n]) >= settings.overlap_iou

    def one_class(i: int, j: int) -> bool:
        return settings.exclude_same_class and i != j and labels[i] == labels[j]

    directions = [(u, v)] + ([(v, u)] if settings.symmetric else [])
    sample = feature = 0.0
    for anchors, others in directions:
        for i in range(images):
            for m in range(count):
                scores = {}
                for j in range(images):
                    for n in range(count) if settings.negatives == "joint" else [m]:
                        barred = one_class(i, j) or not keeps(j, n) or (i == j and overlap(m, n))
                        if (j, n) == (i, m) or not barred:
                            scores[j, n] = dot(anchors[i][m], others[j][n]) / settings.tau_sample
                sample += w[i][m] * surprise(scores, (i, m)) / whole
        if settings.feature_axis == "region":
            for i in range(images):
                for m in range(count):
                    near = {}
                    for n in range(count):
                        if n == m or not (overlap(m, n) or not keeps(i, n)):
                            near[n, 0] = dot(anchors[i][m], others[i][n]) / settings.tau_feature
                    feature += w[i][m] * surprise(near, (m, 0)) / whole
        else:
            left, right = columns(anchors, w), columns(others, w)
            for c, column in enumerate(left):
                scores = {(d, 0): dot(column, right[d]) / settings.tau_feature for d in range(len(right))}
                feature += surprise(scores, (c, 0)) / len(left)
    return settings.alpha * sample + settings.beta * feature


def lay(settings: MsdcrdSettings, smallest: int) -> list[Region]:
    regions = []
    for grid in sorted({min(grid, smallest) for grid in settings.grids}):
        step = Fraction(settings.window_stride).limit_denominator(1000) / grid
        starts = []
        start = Fraction(0)
        while start + Fraction(1, grid) <= 1:
            starts.append(start)
            start += step
        for top in starts:
            regions += [
                (grid, top, left, top + Fraction(1, grid), left + Fraction(1, grid)) for left in starts
            ]
    return regions


@functools.cache
def shares(region: Region, size: tuple[int, ...]) -> dict[tuple[int, int], Fraction]:
    """The area of each pixel inside the region, in pixels."""
    height, width = size
    _, top, left, bottom, right = region
    found = {}
    for y in range(height):
        for x in range(width):
            rows = min(bottom * height, Fraction(y + 1)) - max(top * height, Fraction(y))
            across = min(right * width, Fraction(x + 1)) - max(left * width, Fraction(x))
            if rows > 0 and across > 0:
                found[y, x] = rows * across
    return found


def without_copies(regions: list[Region], sizes: list[tuple[int, ...]]) -> list[Region]:
    kept: list[Region] = []
    for region in regions:
        copy = any(
            shares(region, size).keys() == shares(other, size).keys() for other in kept for size in sizes
        )
        if not copy:
            kept.append(region)
    return kept


def pooled(how: str, maps: Tensor, regions: list[Region]) -> list[list[Vector]]:
    images = []
    for image in maps.double():
        rows = []
        for region in regions:
            part = shares(region, tuple(image.shape[-2:]))
            area = float(sum(part.values()))
            vector = []
            for channel in image.tolist():
                values = [(float(share), channel[y][x]) for (y, x), share in part.items()]
                if how == "avg":
                    vector.append(sum(a * x for a, x in values) / area)
                elif how == "max":
                    vector.append(max(x for _, x in values))
                else:
                    vector.append((sum(a * max(x, 1e-6) ** 3 for a, x in values) / area) ** (1 / 3))
            rows.append(vector)
        images.append(rows)
    return images


def weights(
    settings: MsdcrdSettings, regions: list[Region], labels: list[int], judge: Judge
) -> list[list[float]]:
    grids = [region[0] for region in regions]
    scales = sorted(set(grids))
    scale = [1.0] * len(regions)
    if settings.scale_weights == "pyramid":
        scale = [2.0 ** -scales.index(grid) / grids.count(grid) for grid in grids]
    if settings.selection in ("none", "dedup"):
        return [list(scale) for _ in labels]
    local = [[judge.head(z) for z in row] for row in pooled("avg", judge.map, regions)]
    result = []
    for i, label in enumerate(labels):
        if settings.selection == "sdd":
            right = best(judge.logits[i].tolist()) == label
            factors = [1.0 if (best(scores) == label) == right else 2.0 for scores in local[i]]
        else:
            sure = [max(softmax(scores)) for scores in local[i]]
            order = sorted(range(len(sure)), key=lambda m: -sure[m])[: settings.topk]
            factors = [1.0 if m in order else 0.0 for m in range(len(sure))]
        result.append([a * b for a, b in zip(scale, factors, strict=True)])
    return result


def columns(vectors: list[list[Vector]], w: list[list[float]]) -> list[Vector]:
    """One weighted, centred column of unit length for each channel."""
    whole = sum(sum(row) for row in w)
    rows = [
        (v, a / whole) for image, row in zip(vectors, w, strict=True) for v, a in zip(image, row, strict=True)
    ]
    result = []
    for c in range(len(rows[0][0])):
        mean = sum(a * v[c] for v, a in rows)
        result.append(unit([math.sqrt(a) * (v[c] - mean) for v, a in rows]))
    return result


@functools.cache
def iou(one: Region, other: Region) -> float:
    _, top, left, bottom, right = one
    _, top_, left_, bottom_, right_ = other
    zero = Fraction(0)
    tall, wide = min(bottom, bottom_) - max(top, top_), min(right, right_) - max(left, left_)
    shared = max(tall, zero) * max(wide, zero)
    joint = (bottom - top) * (right - left) + (bottom_ - top_) * (right_ - left_) - shared
    return float(shared / joint)


def surprise(scores: dict[tuple[int, int], float], positive: tuple[int, int]) -> float:
    top = max(scores.values())
    return top + math.log(sum(math.exp(s - top) for s in scores.values())) - scores[positive]


def softmax(scores: Vector) -> Vector:
    top = max(scores)
    powers = [math.exp(s - top) for s in scores]
    return [power / sum(powers) for power in powers]


def unit(vector: Vector) -> Vector:
    length = math.sqrt(sum(x * x for x in vector))
    return [x / length for x in vector]


def dot(a: Vector, b: Vector) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def best(scores: Vector) -> int:
    return max(range(len(scores)), key=lambda k: scores[k])


def module(layer: torch.nn.Module) -> Project:
    """A torch module as a projector of one vector, in float64."""
    double = copy.deepcopy(layer).double()

    def project(vector: Vector) -> Vector:
        with torch.no_grad():
            result: Vector = double(torch.tensor(vector, dtype=torch.float64)).tolist()
        return result

    return project
