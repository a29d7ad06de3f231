from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from stages.methods.parts.pyramid import pyramid_loss
from tests.stages.methods import made


def by_hand(student: Tensor, teacher: Tensor) -> float:
    """The equation in float64, cell by cell."""
    images, channels, height, width = student.shape
    s, t = student.double().tolist(), teacher.double().tolist()

    def mean(
        maps: list[list[list[list[float]]]], i: int, c: int, top: int, left: int, cells: tuple[int, int]
    ) -> float:
        rows = range(math.floor(top * height / cells[0]), math.ceil(round((top + 1) * height / cells[0], 9)))
        columns = range(
            math.floor(left * width / cells[1]), math.ceil(round((left + 1) * width / cells[1], 9))
        )
        values = [maps[i][c][row][column] for row in rows for column in columns]
        return sum(values) / len(values)

    grids = [(height, width)]
    for level in (4, 2, 1):
        grid = min(level, height), min(level, width)
        if grid not in grids:
            grids.append(grid)
    total = 0.0
    for number, grid in enumerate(grids):
        squares = [
            (mean(s, i, c, row, column, grid) - mean(t, i, c, row, column, grid)) ** 2
            for i in range(images)
            for c in range(channels)
            for row in range(grid[0])
            for column in range(grid[1])
        ]
        total += 0.5**number * sum(squares) / len(squares)
    return total / sum(0.5**number for number in range(len(grids)))


@pytest.mark.parametrize(
    "size", [(8, 8), (7, 7), (4, 4), (3, 3), (2, 2), (1, 1), (2, 8), (5, 1), (14, 7)], ids=str
)
def test_agrees_with_the_equation(size: tuple[int, int]) -> None:
    student, teacher = made.maps(3, 4, *size, seed=1), made.maps(3, 4, *size, seed=2)
    found = pyramid_loss(student, teacher)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(by_hand(student, teacher), rel=1e-5)


@pytest.mark.parametrize("size", [(7, 7), (6, 6), (8, 8), (2, 9)], ids=str)
def test_levels_are_those_of_adaptive_pooling(size: tuple[int, int]) -> None:
    gap = made.maps(2, 3, *size)
    parts = [gap] + [
        torch.nn.functional.adaptive_avg_pool2d(gap, (min(level, size[0]), min(level, size[1])))
        for level in (4, 2, 1)
    ]
    weights = [1.0, 0.5, 0.25, 0.125]
    expected = sum(w * part.square().mean() for w, part in zip(weights, parts, strict=True)) / sum(weights)
    assert torch.allclose(pyramid_loss(gap, torch.zeros_like(gap)), torch.as_tensor(expected))


def test_a_constant_gap_is_its_square_at_every_level() -> None:
    maps = made.maps(2, 3, 7, 5)
    assert pyramid_loss(maps + 3.0, maps).item() == pytest.approx(9.0, rel=1e-5)
    assert pyramid_loss(maps, maps).item() == 0.0


def test_computes_in_float32_under_autocast() -> None:
    student, teacher = made.maps(2, 3, 8, 8, seed=1).bfloat16(), made.maps(2, 3, 8, 8, seed=2).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = pyramid_loss(student, teacher)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(by_hand(student, teacher), rel=1e-5)
