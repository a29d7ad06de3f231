"""The losses on logits and on pooled vectors written out loop by loop in float64 from the equations of
docs/reference/methods.md: slow, and plain. Nothing of it is shared with the code it checks."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from stages.methods.settings import MsdcrdSettings, SddSettings
from tests.stages.methods.reference import Judge, Project, Vector, best, dot, lay, pooled, softmax

Rows = list[Vector]


def rows(tensor: Tensor) -> Rows:
    found: Rows = tensor.detach().double().tolist()
    return found


def softened(logits: Vector, temperature: float) -> Vector:
    return softmax([z / temperature for z in logits])


def divergence(p: Vector, q: Vector) -> float:
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True) if a > 0.0)


def standardised(logits: Vector) -> Vector:
    mean = sum(logits) / len(logits)
    variance = sum((z - mean) ** 2 for z in logits) / (len(logits) - 1)
    return [(z - mean) / math.sqrt(variance) for z in logits]


def kd(student: Vector, teacher: Vector, temperature: float) -> float:
    return temperature**2 * divergence(softened(teacher, temperature), softened(student, temperature))


def dkd(student: Vector, teacher: Vector, label: int, alpha: float, beta: float, temperature: float) -> float:
    p, q = softened(teacher, temperature), softened(student, temperature)
    binary = divergence([p[label], 1.0 - p[label]], [q[label], 1.0 - q[label]])
    others = [k for k in range(len(p)) if k != label]
    among = divergence(
        softened([teacher[k] for k in others], temperature),
        softened([student[k] for k in others], temperature),
    )
    return temperature**2 * (alpha * binary + beta * among)


def pearson(a: Vector, b: Vector, shortest: float) -> float:
    a, b = ([x - sum(v) / len(v) for x in v] for v in (a, b))
    lengths = [max(math.sqrt(dot(v, v)), shortest) for v in (a, b)]
    return dot(a, b) / (lengths[0] * lengths[1])


def dist(
    student: Rows, teacher: Rows, beta: float, gamma: float, temperature: float, shortest: float
) -> float:
    q = [softened(z, temperature) for z in student]
    p = [softened(z, temperature) for z in teacher]
    images, classes = len(p), len(p[0])
    inter = sum(1.0 - pearson(p[i], q[i], shortest) for i in range(images)) / images
    intra = 0.0
    if images > 1:
        for k in range(classes):
            column = [row[k] for row in p], [row[k] for row in q]
            intra += (1.0 - pearson(*column, shortest)) / classes
    return temperature**2 * (beta * inter + gamma * intra)


def huber(x: float) -> float:
    return 0.5 * x * x if abs(x) < 1.0 else abs(x) - 0.5


def rkd(student: Rows, teacher: Rows, distance_weight: float, angle_weight: float) -> float:
    n = len(student)
    distances = [_distances(points) for points in (student, teacher)]
    distance = sum(huber(distances[0][i][j] - distances[1][i][j]) for i in range(n) for j in range(n))
    angle = 0.0
    for j in range(n):
        for i in range(n):
            for k in range(n):
                angle += huber(_cosine(student, i, j, k) - _cosine(teacher, i, j, k))
    return distance_weight * distance / n**2 + angle_weight * angle / n**3


def _distances(points: Rows) -> Rows:
    lengths = [[math.dist(a, b) for b in points] for a in points]
    between = [length for row in lengths for length in row if length > 0.0]
    mean = sum(between) / len(between) if between else 1.0
    return [[length / mean for length in row] for row in lengths]


def _cosine(points: Rows, i: int, j: int, k: int) -> float:
    a, b = ([x - y for x, y in zip(points[other], points[j], strict=True)] for other in (i, k))
    lengths = math.sqrt(dot(a, a)) * math.sqrt(dot(b, b))
    return dot(a, b) / lengths if lengths > 0.0 else 0.0


def mlkd(
    student: Rows, teacher: Rows, temperatures: list[float], by_image: float, by_batch: float, by_class: float
) -> float:
    images, classes = len(student), len(student[0])
    total = 0.0
    for t in temperatures:
        p, q = [softened(z, t) for z in teacher], [softened(z, t) for z in student]
        total += by_image * sum(t**2 * divergence(a, b) for a, b in zip(p, q, strict=True)) / images
        p_columns, q_columns = ([list(column) for column in zip(*m, strict=True)] for m in (p, q))
        total += by_batch * _gap(p, q) / images + by_class * _gap(p_columns, q_columns) / classes
    return total


def _gap(p: Rows, q: Rows) -> float:
    count = range(len(p))
    return sum((dot(p[a], p[b]) - dot(q[a], q[b])) ** 2 for a in count for b in count)


def sdd(
    settings: SddSettings, student_map: Tensor, student_head: Project, teacher: Judge, labels: list[int]
) -> float:
    smallest = min(*student_map.shape[-2:], *teacher.map.shape[-2:])
    regions = lay(MsdcrdSettings(name="msdcrd", grids=settings.grids), smallest)
    ours, theirs = pooled("avg", student_map, regions), pooled("avg", teacher.map, regions)
    inner = _inner(settings)
    total = 0.0
    for i, label in enumerate(labels):
        right = best(teacher.logits[i].tolist()) == label
        for m in range(len(regions)):
            local = teacher.head(theirs[i][m])
            factor = 1.0 if (best(local) == label) == right else settings.complementary_weight
            total += factor * inner(student_head(ours[i][m]), local, label)
    return total / (len(labels) * len(regions))


def _inner(settings: SddSettings) -> Callable[[Vector, Vector, int], float]:
    if settings.inner == "kd":
        return lambda ours, theirs, _: kd(ours, theirs, settings.temperature)
    return lambda ours, theirs, label: dkd(
        ours, theirs, label, settings.alpha, settings.beta, settings.temperature
    )
