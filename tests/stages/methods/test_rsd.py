from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.methods.rsd import BATCH_NORM_EPS, Rsd
from stages.models.features import Features
from tests.stages.methods import made
from tests.stages.methods.reference import Vector, module


def pair(images: int = 5, teacher_channels: int = 6) -> tuple[Features, Features]:
    student, teacher = made.maps(images, 4, 2, 2, seed=1), made.maps(images, teacher_channels, 2, 2, seed=2)
    return made.features(student), made.features(teacher)


def rsd(student: Features, teacher: Features, **keys: Any) -> Rsd:
    torch.manual_seed(1)
    return Rsd(made.spec(student), made.spec(teacher), **keys)


def loss(method: Rsd, student: Features, teacher: Features) -> Tensor:
    return method(student, teacher, made.batch(made.labels(len(student.logits))))


def expected(method: Rsd, student: Features, teacher: Features) -> float:
    kappa = method.kappa
    wide = [module(method.expander)(v) for v in student.embedding.tolist()]
    scale, shift = method.norm_scale.tolist(), method.norm_shift.tolist()
    activated = [[0.0] * len(scale) for _ in wide]
    for c in range(len(scale)):
        column = [row[c] for row in wide]
        mean = sum(column) / len(column)
        variance = sum((x - mean) ** 2 for x in column) / len(column)
        for i, x in enumerate(column):
            y = (x - mean) / math.sqrt(variance + BATCH_NORM_EPS) * scale[c] + shift[c]
            activated[i][c] = 0.5 * y * (1 + math.erf(y / math.sqrt(2)))
    z = [module(method.adaptor)(v) for v in activated]
    t = teacher.embedding.double().tolist()
    channels = range(len(t[0]))
    equal = different = 0.0
    for c in channels:
        for d in channels:
            p = pearson([row[c] for row in z], [row[d] for row in t])
            if c == d:
                equal += (p - 1) ** 2 / len(channels)
            else:
                different += p**2 / (len(channels) * (len(channels) - 1))
    return equal + kappa * different


def pearson(x: Vector, y: Vector) -> float:
    a, b = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((p - a) * (q - b) for p, q in zip(x, y, strict=True))
    spread = math.sqrt(sum((p - a) ** 2 for p in x) * sum((q - b) ** 2 for q in y))
    return covariance / spread if spread > 0 else 0.0


@pytest.mark.parametrize("keys", [{}, {"kappa": 0.0}, {"kappa": 3.0, "expansion": 0.3}], ids=str)
@pytest.mark.parametrize("shape", [(5, 6), (2, 6), (5, 1)], ids=str)
def test_agrees_with_the_equations(shape: tuple[int, int], keys: dict[str, Any]) -> None:
    student, teacher = pair(*shape)
    method = rsd(student, teacher, **keys)
    torch.nn.init.normal_(method.norm_scale)
    torch.nn.init.normal_(method.norm_shift)
    found = loss(method, student, teacher)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected(method, student, teacher), rel=2e-5)


def test_scale_and_shift_of_the_teacher_do_not_matter() -> None:
    student, teacher = pair()
    method = rsd(student, teacher)
    one = loss(method, student, teacher)
    teacher.embedding = 3.0 * teacher.embedding + torch.arange(6.0)
    assert loss(method, student, teacher).item() == pytest.approx(one.item(), rel=1e-4)


def test_uncorrelated_channels_copied_exactly_lose_nothing() -> None:
    # Four channels of a Hadamard matrix: of mean zero and at right angles over eight images.
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    columns = torch.kron(torch.kron(two, two), two)[:, 1:5]
    student, teacher = pair(8, 4)
    teacher.embedding = columns
    method = rsd(student, teacher)
    method.expander, method.adaptor = torch.nn.Identity(), torch.nn.Identity()  # type: ignore[assignment]
    method.norm_scale.data, method.norm_shift.data = torch.ones(4), torch.full((4,), 20.0)  # GELU is straight
    student.embedding = 5.0 * columns - 1.0
    assert loss(method, student, teacher).item() == pytest.approx(0.0, abs=1e-6)
    student.embedding = columns.roll(1, dims=1)
    # Every channel correlates with its neighbour alone: 4 of 12 pairs.
    assert loss(method, student, teacher).item() == pytest.approx(1.0 + 4 / 12, rel=1e-5)


@pytest.mark.parametrize("which", ["student", "teacher", "both", "one image"])
def test_what_does_not_vary_correlates_with_nothing(which: str) -> None:
    student, teacher = pair(1 if which == "one image" else 5)
    if which in ("student", "both"):
        student.embedding = torch.full_like(student.embedding, 0.1)
    if which in ("teacher", "both"):
        teacher.embedding = torch.full_like(teacher.embedding, 0.1)
    student.embedding = student.embedding.detach().requires_grad_()
    method = rsd(student, teacher)
    value = loss(method, student, teacher)
    value.backward()
    assert value.item() == 1.0
    assert student.embedding.grad is not None
    assert student.embedding.grad.abs().max() == 0.0


def test_everything_learns_and_the_teacher_does_not() -> None:
    student, teacher = pair()
    teacher.embedding = teacher.embedding.detach().requires_grad_()
    method = rsd(student, teacher)
    optimizer = torch.optim.Adam(method.parameters(), lr=0.02)
    first = loss(method, student, teacher)
    first.backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    assert teacher.embedding.grad is None
    for _ in range(40):
        optimizer.zero_grad()
        value = loss(method, student, teacher)
        value.backward()
        optimizer.step()
    assert value.item() < 0.7 * first.item()
