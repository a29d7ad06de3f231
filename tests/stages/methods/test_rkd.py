from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings, strategies
from pydantic import ValidationError
from torch import Tensor

from stages.methods.rkd import Rkd
from stages.methods.settings import RkdSettings
from stages.models.features import Features
from tests.stages.methods import made, reference_logits


def shown(vectors: Tensor) -> Features:
    return Features(vectors, vectors, vectors[:, :, None, None])


def loss(student: Tensor, teacher: Tensor, **keys: float) -> Tensor:
    method = Rkd(made.spec(shown(student)), made.spec(shown(teacher)), **keys)
    value: Tensor = method(shown(student), shown(teacher), made.batch(made.labels(len(student))))
    return value


def vectors(images: int, channels: int, seed: int) -> Tensor:
    return made.maps(images, channels, 1, 1, seed).flatten(1)


@pytest.mark.parametrize("images", [1, 2, 3, 6])
@pytest.mark.parametrize(("distance", "angle"), [(25.0, 50.0), (1.0, 0.0), (0.0, 1.0)])
def test_agrees_with_the_equation(images: int, distance: float, angle: float) -> None:
    student, teacher = vectors(images, 4, 1), vectors(images, 7, 2)
    found = loss(student, teacher, distance_weight=distance, angle_weight=angle).item()
    ours, theirs = reference_logits.rows(student), reference_logits.rows(teacher)
    assert found == pytest.approx(reference_logits.rkd(ours, theirs, distance, angle), rel=1e-4, abs=1e-6)


def test_images_that_are_one_point_agree_with_the_equation() -> None:
    student, teacher = vectors(5, 4, 1), vectors(5, 7, 2)
    student[3], teacher[2] = student[1], teacher[0]
    ours, theirs = reference_logits.rows(student), reference_logits.rows(teacher)
    assert loss(student, teacher).item() == pytest.approx(
        reference_logits.rkd(ours, theirs, 25, 50), rel=1e-4
    )


def test_a_triangle_by_hand() -> None:
    # 3-4-5 against three points on a line at 0, 1 and 2. Mean distances 4 and 4/3.
    student = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    teacher = torch.tensor([[0.0], [1.0], [2.0]])
    gaps = [3 / 4 - 3 / 4, 4 / 4 - 6 / 4, 5 / 4 - 3 / 4]
    distance = 2 * sum(0.5 * gap**2 for gap in gaps) / 9
    assert loss(student, teacher, angle_weight=0.0, distance_weight=1.0).item() == pytest.approx(distance)
    # Cosines at the three points: 0, 3/5 and 4/5 against 1, -1 and 1; each pair counts twice.
    angle = 2 * (0.5 * 1.0 + (1.6 - 0.5) + 0.5 * 0.2**2) / 27
    assert loss(student, teacher, angle_weight=1.0, distance_weight=0.0).item() == pytest.approx(angle)


@settings(deadline=None, max_examples=30)
@given(
    scale=strategies.floats(1e-3, 1e3),
    shift=strategies.floats(-10.0, 10.0),
    turn=strategies.integers(0, 100),
)
def test_moved_turned_and_scaled_vectors_have_the_same_relations(
    scale: float, shift: float, turn: int
) -> None:
    teacher = vectors(6, 4, 2)
    rotation = torch.linalg.qr(made.maps(1, 4, 4, 1, turn)[0, :, :, 0]).Q
    student = scale * (teacher @ rotation + shift)
    assert loss(student, teacher).item() == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("value", [0.0, 7.3, 1e4])
def test_a_batch_that_has_collapsed_to_one_point_takes_no_gradient(value: float) -> None:
    # One point but for the rounding of what led there.
    student = value * (1.0 + 1e-7 * vectors(4, 100, 1))
    student.requires_grad_()
    found = loss(student, vectors(4, 7, 2))
    found.backward()
    assert math.isfinite(found.item())
    assert student.grad is not None
    assert torch.equal(student.grad, torch.zeros_like(student))


def test_two_images_that_are_one_point_for_the_student_give_a_finite_gradient() -> None:
    student = vectors(5, 4, 1)
    student[3] = student[1]
    student.requires_grad_()
    loss(student, vectors(5, 7, 2)).backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert student.grad.abs().max() < 1e3


def test_the_gradient_is_that_of_the_equation() -> None:
    student, teacher = vectors(4, 3, 1).requires_grad_(), vectors(4, 5, 2)
    loss(student, teacher).backward()
    assert student.grad is not None
    step = 1e-5
    for image, channel in [(0, 0), (1, 2), (3, 1)]:
        ends = []
        for sign in (1.0, -1.0):
            moved = student.detach().double()
            moved[image, channel] += sign * step
            ends.append(reference_logits.rkd(moved.tolist(), reference_logits.rows(teacher), 25.0, 50.0))
        slope = (ends[0] - ends[1]) / (2 * step)
        assert student.grad[image, channel].item() == pytest.approx(slope, rel=1e-3, abs=1e-4)


def test_weights_of_nothing_are_refused() -> None:
    with pytest.raises(ValidationError, match="do nothing"):
        RkdSettings(name="rkd", distance_weight=0.0, angle_weight=0.0)
