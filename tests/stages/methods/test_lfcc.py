from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import ModelError
from stages.methods.lfcc import Level, Lfcc
from stages.methods.parts.lowpass import LowPass
from stages.methods.settings import LfccSettings
from stages.models.features import Features, Needs
from tests.errors import raises
from tests.stages.methods import made
from tests.stages.methods.reference import Vector, dot, module, surprise, unit

FILTERS = ("avgpool", "gaussian", "dct", "learnable_depthwise")
SWITCHES: list[dict[str, Any]] = [
    {},
    *({"filter": name} for name in FILTERS),
    {"filter": "gaussian", "sigma": 1.5, "grids": [2, 3]},
    {"filter": "learnable_depthwise", "kernel": 5},
    {"unit": "cell"},
    {"unit": "cell", "filter": "dct", "symmetric": True, "tau": 0.3},
    {"symmetric": True, "proj_dim": 3},
    {"stages": [-1]},
    {"stages": [-1, -2], "grids": [1]},
]

Cells = list[list[Vector]]
"""Row, column, channel."""


def pair(images: int = 3) -> tuple[Features, Features]:
    """Three ends against two, neither square nor of sizes that divide."""
    ours = [(2, 8, 8), (3, 5, 4), (4, 2, 3)]
    theirs = [(3, 7, 6), (5, 4, 4)]
    return tuple(  # type: ignore[return-value]
        made.features(maps[-1], ends=tuple(maps))
        for maps in (
            [made.maps(images, *shape, seed=10 * n + shape[0]) for shape in shapes]
            for n, shapes in enumerate((ours, theirs))
        )
    )


def lfcc(student: Features, teacher: Features, **keys: Any) -> Lfcc:
    torch.manual_seed(1)
    method = Lfcc(made.spec(student), made.spec(teacher), **keys)
    for level in levels(method):
        if level.student_filter.taps > 1:
            nn.init.normal_(level.student_filter.weights)
    return method


def levels(method: Lfcc) -> list[Level]:
    return [level for level in method.levels if isinstance(level, Level)]


def loss(method: Lfcc, student: Features, teacher: Features) -> Tensor:
    return method(student, teacher, made.batch(made.labels(len(student.logits))))


# --- the equations, loop by loop


def expected(method: Lfcc, student: Features, teacher: Features, **keys: Any) -> float:
    settings = LfccSettings(name="lfcc", **keys)
    count = min(len(student.ends), len(teacher.ends))
    depths = settings.stages if isinstance(settings.stages, list) else list(range(-count, 0))
    total = 0.0
    for depth, level in zip(sorted(depths), levels(method), strict=True):
        one, other = student.ends[depth].double(), teacher.ends[depth].double()
        smallest = min(*one.shape[-2:], *other.shape[-2:])
        grids = sorted({min(grid, smallest) for grid in settings.grids})
        kernel = level.student_filter.weights.double().softmax(1) if level.student_filter.taps > 1 else None
        for n, grid in enumerate(grids):
            q = [low_pass(settings, image.tolist(), grid, kernel) for image in one]
            v = [low_pass(LfccSettings(name="lfcc"), image.tolist(), grid, None) for image in other]
            ours = projected(settings.unit, q, module(level.student_projectors[n]))
            theirs = projected(settings.unit, v, module(level.teacher_projectors[n]))
            for anchors, others in [(ours, theirs)] + ([(theirs, ours)] if settings.symmetric else []):
                value = 0.0
                for i in range(len(anchors)):
                    for u in range(len(anchors[i])):
                        scores = {
                            (j, 0): dot(anchors[i][u], others[j][u]) / settings.tau
                            for j in range(len(others))
                        }
                        value += surprise(scores, (i, 0)) / (len(anchors) * len(anchors[i]))
                total += value / (len(depths) * len(grids))
    return total


def projected(kind: str, images: list[Cells], layer: Callable[[Vector], Vector]) -> list[list[Vector]]:
    found = []
    for cells in images:
        flat = [vector for row in cells for vector in row]
        if kind == "concat":
            flat = [[x for vector in flat for x in vector]]
        found.append([unit(layer(vector)) for vector in flat])
    return found


def low_pass(settings: LfccSettings, image: list[list[Vector]], grid: int, kernel: Tensor | None) -> Cells:
    """image: channel, row, column."""
    height, width = len(image[0]), len(image[0][0])
    if settings.filter == "dct":
        image = [lowest_frequencies(channel, grid) for channel in image]
    if kernel is not None:
        image = [windowed(channel, kernel[c].tolist()) for c, channel in enumerate(image)]

    def share(cell: int, pixel: int, side: int) -> float:
        if settings.filter == "gaussian":
            away = ((pixel + 0.5) / side * grid - (cell + 0.5)) / settings.sigma
            return math.exp(-0.5 * away**2)
        return max(0.0, min((cell + 1) * side / grid, pixel + 1) - max(cell * side / grid, pixel))

    cells: Cells = []
    for row in range(grid):
        cells.append([])
        for column in range(grid):
            w = [
                [share(row, y, height) * share(column, x, width) for x in range(width)] for y in range(height)
            ]
            whole = sum(map(sum, w))
            cells[-1].append(
                [
                    sum(w[y][x] * channel[y][x] for y in range(height) for x in range(width)) / whole
                    for channel in image
                ]
            )
    return cells


def lowest_frequencies(channel: list[Vector], count: int) -> list[Vector]:
    height, width = len(channel), len(channel[0])
    result = [[0.0] * width for _ in range(height)]
    for a in range(count):
        for b in range(count):
            wave = [
                [
                    math.cos(math.pi * a * (y + 0.5) / height) * math.cos(math.pi * b * (x + 0.5) / width)
                    for x in range(width)
                ]
                for y in range(height)
            ]
            energy = sum(v * v for row in wave for v in row)
            amount = sum(channel[y][x] * wave[y][x] for y in range(height) for x in range(width)) / energy
            for y in range(height):
                for x in range(width):
                    result[y][x] += amount * wave[y][x]
    return result


def windowed(channel: list[Vector], kernel: Vector) -> list[Vector]:
    side = round(math.sqrt(len(kernel)))
    height, width = len(channel), len(channel[0])
    result = []
    for y in range(height):
        result.append([0.0] * width)
        for x in range(width):
            for k, weight in enumerate(kernel):
                source_y = min(max(y + k // side - side // 2, 0), height - 1)
                source_x = min(max(x + k % side - side // 2, 0), width - 1)
                result[y][x] += weight * channel[source_y][source_x]
    return result


@pytest.mark.parametrize("keys", SWITCHES, ids=str)
@pytest.mark.parametrize("images", [1, 3])
def test_agrees_with_the_equations(images: int, keys: dict[str, Any]) -> None:
    student, teacher = pair(images)
    method = lfcc(student, teacher, **keys)
    found = loss(method, student, teacher)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected(method, student, teacher, **keys), rel=2e-5, abs=1e-6)


# --- filters


@pytest.mark.parametrize("kind", FILTERS)
@pytest.mark.parametrize("shape", [(2, 6, 6), (2, 7, 5), (2, 4, 4)], ids=str)
def test_a_filter_keeps_a_constant_and_damps_what_alternates(kind: Any, shape: tuple[int, int, int]) -> None:
    low_pass = LowPass(kind, [1, 2, 4], shape)
    constant = low_pass(torch.full((1, *shape), 3.0))
    assert torch.allclose(constant, torch.full((1, 21, 2), 3.0), atol=1e-5)
    checks = (torch.arange(shape[1])[:, None] + torch.arange(shape[2])) % 2 * 2.0 - 1.0
    assert low_pass(checks.expand(1, *shape))[:, :5].abs().max() < 0.35


def test_what_a_learned_filter_may_do_equals_a_convolution_before_the_pooling() -> None:
    low_pass = LowPass("learnable_depthwise", [1, 2, 4], (3, 8, 8))
    nn.init.normal_(low_pass.weights)
    maps = made.maps(2, 3, 8, 8)
    kernel = low_pass.weights.softmax(1).view(3, 1, 3, 3)
    smooth = functional.conv2d(functional.pad(maps, (1, 1, 1, 1), mode="replicate"), kernel, groups=3)
    wanted = [functional.adaptive_avg_pool2d(smooth, grid).flatten(2) for grid in (1, 2, 4)]
    assert torch.allclose(low_pass(maps), torch.cat(wanted, 2).transpose(1, 2), atol=1e-5)


def test_a_full_grid_of_frequencies_is_average_pooling() -> None:
    maps = made.maps(2, 3, 4, 4)
    assert torch.allclose(LowPass("dct", [4], (3, 4, 4))(maps), maps.flatten(2).transpose(1, 2), atol=1e-5)


# --- behaviour


def test_a_student_that_sees_the_teachers_maps_can_reach_zero() -> None:
    _, teacher = pair(8)
    method = lfcc(teacher, teacher, tau=0.001)
    for level in levels(method):
        level.student_projectors.load_state_dict(level.teacher_projectors.state_dict())
    assert loss(method, teacher, teacher).item() < 1e-3


def test_grids_are_cut_to_the_smaller_map() -> None:
    student, teacher = pair()
    method = lfcc(student, teacher)
    assert [len(level.forms) for level in levels(method)] == [3, 2]  # 5x4 on 7x6; 2x3 on 4x4
    assert method.needs() == Needs(ends=True)


@pytest.mark.parametrize("keys", SWITCHES, ids=str)
def test_everything_learns_and_the_teacher_does_not(keys: dict[str, Any]) -> None:
    student, teacher = pair()
    for end in (*student.ends, *teacher.ends):
        end.requires_grad_()
    method = lfcc(student, teacher, **keys)
    loss(method, student, teacher).backward()
    used = len(levels(method))
    for end in student.ends[-used:]:
        assert end.grad is not None
        assert end.grad.abs().max() > 0
    assert all(end.grad is None for end in (*student.ends[:-used], *teacher.ends))
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_a_depth_that_a_network_does_not_have_is_refused() -> None:
    student, teacher = pair()
    with raises(ModelError, what="teacher"):
        lfcc(student, teacher, stages=[-3])


@pytest.mark.parametrize(
    "keys",
    [{"grids": [0]}, {"stages": []}, {"stages": [0]}, {"stages": [-1, -1]}, {"kernel": 4}, {"tau": 0.0}],
    ids=str,
)
def test_settings_that_say_nothing_are_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        LfccSettings(name="lfcc", **keys)
