from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from stages.methods import dist
from stages.methods.settings import DistSettings
from stages.models.features import Features
from tests.stages.methods import made, reference_logits


def shown(logits: Tensor) -> Features:
    return Features(logits, logits, logits[:, :, None, None])


def loss(student: Tensor, teacher: Tensor, **keys: float) -> Tensor:
    spec = made.spec(shown(student))
    method = dist.Dist(spec, spec, **keys)
    value: Tensor = method(shown(student), shown(teacher), made.batch(made.labels(len(student))))
    return value


def logits(images: int, seed: int) -> Tensor:
    return 2.0 * made.maps(images, made.CLASSES, 1, 1, seed).flatten(1)


@pytest.mark.parametrize("images", [1, 2, 5])
@pytest.mark.parametrize(
    ("beta", "gamma", "temperature"), [(1.0, 1.0, 1.0), (2.0, 0.5, 4.0), (0.0, 1.0, 2.0), (1.0, 0.0, 0.5)]
)
def test_agrees_with_the_equation(images: int, beta: float, gamma: float, temperature: float) -> None:
    student, teacher = logits(images, 1), logits(images, 2)
    found = loss(student, teacher, beta=beta, gamma=gamma, temperature=temperature).item()
    ours, theirs = reference_logits.rows(student), reference_logits.rows(teacher)
    expected = reference_logits.dist(ours, theirs, beta, gamma, temperature, dist.MIN_DEVIATION)
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_worked_examples() -> None:
    teacher = torch.tensor([[0.8, 0.2], [0.4, 0.6]]).log()
    # Other numbers in the same order: both images and both classes correlate fully.
    alike = torch.tensor([[0.6, 0.4], [0.3, 0.7]]).log()
    assert loss(alike, teacher).item() == pytest.approx(0.0, abs=1e-5)
    # Classes swapped: each image and each class correlates with -1, and loses 2.
    assert loss(teacher.flip(1), teacher, beta=1.0, gamma=0.0).item() == pytest.approx(2.0, abs=1e-5)
    assert loss(teacher.flip(1), teacher, beta=0.0, gamma=1.0).item() == pytest.approx(2.0, abs=1e-5)


def test_the_relation_between_images_is_empty_for_one_image() -> None:
    student = logits(1, 1).requires_grad_()
    value = loss(student, logits(1, 2), beta=0.0)
    value.backward()
    assert value.item() == 0.0
    assert student.grad is not None
    assert torch.equal(student.grad, torch.zeros_like(student))


def test_undecided_students_and_constant_classes_get_a_bounded_gradient() -> None:
    student = torch.zeros(4, made.CLASSES).requires_grad_()
    value = loss(student, logits(4, 2))
    value.backward()
    assert value.item() == pytest.approx(2.0, abs=1e-2)
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert 0.0 < student.grad.abs().max() < 1e4


def test_certain_networks_stay_finite() -> None:
    student = (1e4 * torch.eye(5)).requires_grad_()
    loss(student, 1e4 * torch.eye(5).flip(0)).backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_weights_of_nothing_are_refused() -> None:
    with pytest.raises(ValidationError, match="do nothing"):
        DistSettings(name="dist", beta=0.0, gamma=0.0)
